"""Files that a study names by relative paths: those of whoever starts it, from wherever it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.addresses import absolute_file
from search_spaces.dimension import Dimension

if TYPE_CHECKING:
    from search_spaces.study import Study

_PATHS = ("data.directory", "data.subset.file")  # data.extra is relative to the first


def rooted(study: Study) -> Study:
    """The same study with paths that hold in any working directory."""
    search, tracking = study.search, study.tracking
    start = tuple({path: _rooted(path, value) for path, value in point.items()} for point in search.start)
    return study.model_copy(
        update={
            "experiment": _rooted("", study.experiment),
            "space": tuple(map(_dimension, study.space)),
            "search": search.model_copy(update={"start": start}),
            "tracking": tracking.model_copy(update={"uri": tracking.uri and absolute_file(tracking.uri)}),
        }
    )


def _dimension(dimension: Dimension) -> Dimension:
    def of_path(path: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_rooted(path, value) for value in values)

    return dimension.model_copy(
        update={
            "choices": None if dimension.choices is None else of_path(dimension.path, dimension.choices),
            "variants": {
                name: {path: _rooted(path, value) for path, value in row.items()}
                for name, row in dimension.variants.items()
            },
            "when": {path: of_path(path, values) for path, values in dimension.when.items()},
        }
    )


def _rooted(path: str, value: Any) -> Any:
    """The value of a field, or of a table of fields; `~` stays, for it is another folder on another machine."""
    if isinstance(value, Mapping):
        return {name: _rooted(f"{path}.{name}" if path else name, inner) for name, inner in value.items()}
    if path in _PATHS and isinstance(value, str) and not value.startswith("~"):
        return str(Path(value).absolute())
    return value
