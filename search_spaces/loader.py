"""Studies from YAML files: the ones that ship with this package by name, the user's by path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces.study import Study, parse_study
from trainers.config import apply_values, read_overrides
from trainers.problems import InvalidInput, Problem, unknown_name
from trainers.yaml_text import read_table

_FOLDER = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """Name -> file of every study that comes with this package."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


SMOKE = {
    "smoke": True,
    "search.trials": 2,
    "search.stop": {},
    "search.seeds": 1,
    "confirm.ladder": [],
    "confirm.top": 1,
    "confirm.seeds": 1,
    "confirm.samples": 8,
    "confirm.attack": "apgd-ce",  # AutoAttack's code, of its attacks the one that is done in seconds
    "experiment.epochs": 1,
    "experiment.attack.warmup_epochs": 0,
    "experiment.data.train_samples": 256,
    "experiment.data.holdout": 50,
    "experiment.evaluation.probe_samples": 16,
    "experiment.evaluation.check_every": None,
}
# A subset is of images that the study trains on: with another split they are held out, or not among those few.
_OF_SPLIT = ("experiment.data.holdout", "experiment.data.train_samples")


def load_study(source: str | Path, overrides: list[str] | None = None, *, smoke: bool = False) -> Study:
    """Read a study from a file or by its shipped name, apply `key=value` words, validate. Raises InvalidInput.

    `smoke` shrinks it to what shows that everything works, under a name of its own.
    """
    path = Path(source)
    if not path.is_file():
        by_name = shipped()
        if path.suffix or path.parent != Path("."):
            raise InvalidInput.single(str(source), "no such file")
        if str(source) not in by_name:
            raise InvalidInput.single(str(source), unknown_name(source, by_name, "study"))
        path = by_name[str(source)]
    raw, values = read_table(path), read_overrides(overrides or [])
    if smoke:
        raw = apply_values(raw, _smaller(raw, values) | {"name": f"{raw.get('name', path.stem)}-smoke"})
    study = parse_study(_with_dimensions(apply_values(raw, _outside_space(values)), values))
    always = {f"experiment.{dimension.path}": dimension.path for dimension in study.space if not dimension.when}
    idle = {path: always[path] for path in values if path in always}
    if idle:
        raise InvalidInput(
            Problem(path, f"has no effect, for it varies: set space.{varied}") for path, varied in idle.items()
        )
    return study


def _smaller(raw: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """The values of SMOKE, but for those that change the split of the images where the study names a subset of it."""
    if not _names_subset([raw.get("experiment"), raw.get("space"), words]):
        return dict(SMOKE)
    experiment = raw.get("experiment")
    data = experiment.get("data") if isinstance(experiment, Mapping) else None
    kept = _OF_SPLIT if isinstance(data, Mapping) and data.get("train_samples") else _OF_SPLIT[:1]
    return {path: value for path, value in SMOKE.items() if path not in kept}


def _names_subset(content: object) -> bool:
    """Whether some table in plain data has a field `subset`, or a dotted path with one."""
    if isinstance(content, Mapping):
        return any("subset" in str(key).split(".") or _names_subset(inside) for key, inside in content.items())
    return isinstance(content, list) and any(map(_names_subset, content))


def _outside_space(values: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in values.items() if not path.startswith("space.")}


def _with_dimensions(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """With `space.attack.epsilon` or `space.attack.epsilon.low` set: the names of dimensions have dots themselves."""
    space = raw.get("space") or {}
    if not isinstance(space, Mapping):
        return dict(raw)
    space = dict(space)
    for path, value in values.items():
        if not path.startswith("space."):
            continue
        path = path.removeprefix("space.")
        known = [name for name in space if f"{path}.".startswith(f"{name}.")]
        name = max(known, key=len, default=path)
        field, _, inner = path.removeprefix(name).removeprefix(".").partition(".")
        if not field:
            space[name] = value
            continue
        fields = _table(space[name])
        fields[field] = {**_table(fields.get(field)), inner: value} if inner else value
        space[name] = fields
    return {**raw, "space": space}


def _table(value: Any) -> dict[str, Any]:
    """A copy to write into; empty in place of anything else, which the value that is set replaces."""
    return dict(value) if isinstance(value, Mapping) else {}


def header(path: Path) -> str:
    """The first comment line of a study file: what it asks."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
