"""What a study or a run was given, as MLflow keeps it: parameters, which never change, and tags for what did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainers import catalog
from trainers.pixels import PixelValue

if TYPE_CHECKING:
    from mlflow.entities import Param, Run, RunTag


def parameters(given: Mapping[str, Any], tracked: Run) -> tuple[list[Param], list[RunTag]]:
    """What is to be sent of nested settings, for a run as the server has it.

    MLflow refuses to change a parameter, and with it all that comes along: what an earlier start of a study gave
    stays, and what a later one changed, such as where its data lie now, is a tag of the same name.
    """
    from mlflow.entities import Param, RunTag

    known = tracked.data.params | tracked.data.tags
    texts = {name: str(value) for name, value in flatten(given)}
    return (
        [Param(name, text) for name, text in texts.items() if name not in known],
        [RunTag(name, text) for name, text in texts.items() if known.get(name, text) != text],
    )


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf; lengths in pixels as plain numbers, so that a UI can put them on an axis."""
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        elif isinstance(value, str) and path.rpartition(".")[2] in ("epsilon", "step_size"):
            yield path, float(PixelValue(value))
        elif value is not None:
            yield path, value
        elif key in catalog.OPTIONAL_SLOTS:
            # An empty slot is a value to compare by; any other field that is not set is not a parameter.
            yield f"{path}.name", "none"
