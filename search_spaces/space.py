"""What may vary in a study: dimensions over dotted paths of the Experiment, some of them only under a condition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol, Self

from pydantic import BeforeValidator, Field, model_validator

from trainers.config import Section, apply_values, parse
from trainers.pixels import PixelValue
from trainers.problems import InvalidInput, Problem

Bound = Annotated[float, BeforeValidator(lambda value: float(PixelValue(value)))]


class Suggests(Protocol):
    """The part of an Optuna trial that a space needs (so that this room does not import Optuna)."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""

    def suggest_float(
        self, name: str, low: float, high: float, *, log: bool = False, step: float | None = None
    ) -> float:
        """A number between the bounds."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number between the bounds, inclusive."""


class Dimension(Section):
    """One dimension: `choices`, or `low` and `high` (with `log`, `step` or `integer`), or `variants`.

    `variants` are the named rows of a table, each a set of values by path; the dimension's own path is then a name of
    the user's. `when` conditions a dimension on the values of those before it.
    """

    path: str
    choices: tuple[Any, ...] | None = None
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    low: Bound | None = None
    high: Bound | None = None
    log: bool = False
    step: Bound | None = None
    integer: bool = False
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        ranged = self.low is not None and self.high is not None
        if (self.choices is None) == (not ranged) or (self.choices is not None and not self.choices):
            raise ValueError("give either choices, or low and high")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and not (self.low is not None and self.low > 0):
            raise ValueError("log needs a low above 0")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        return self

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether this dimension exists, given the values of those before it."""
        return all(path in values and values[path] in allowed for path, allowed in self.when.items())

    def suggest(self, trial: Suggests) -> Any:
        """Ask the trial for a value."""
        if self.choices is not None:
            return trial.suggest_categorical(self.path, self.choices)
        assert self.low is not None
        assert self.high is not None
        if self.integer:
            return trial.suggest_int(self.path, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, log=self.log, step=self.step)

    @property
    def num_values(self) -> int | None:
        """How many values it has; None if it is continuous."""
        if self.choices is not None:
            return len(self.choices)
        assert self.low is not None
        assert self.high is not None
        step = 1.0 if self.integer else self.step
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that must all be valid for the dimension to be: every choice, or both ends and a point between."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        if self.integer:
            return int(self.low), int(self.high)
        # Between 2.0 and 10.0 lie numbers that are no steps of an attack; pi is in no one's unit.
        between = self.low + (self.step or (self.high - self.low) / math.pi)
        return self.low, between, self.high

    def __str__(self) -> str:
        span = " | ".join(map(str, self.choices)) if self.choices else f"{self.low:g} … {self.high:g}"
        kind = " (log)" if self.log else f" (step {self.step:g})" if self.step else " (integer)" if self.integer else ""
        condition = " and ".join(f"{path} = {' | '.join(map(str, allowed))}" for path, allowed in self.when.items())
        return f"{self.path}: {span}{kind}" + (f"  when {condition}" if condition else "")


def read_space(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The YAML forms, `path: [choices]`, `path: {low, high, …}`, `name: {variants: …}`, as fields of `Dimension`s."""
    table = []
    for path, content in raw.items():
        fields: dict[str, Any] = dict(content or {}) if isinstance(content, Mapping | None) else {"choices": content}
        conditions = fields.get("when", {})
        if isinstance(fields.get("variants"), Mapping) and fields["variants"]:
            fields["choices"] = list(fields["variants"])
        if isinstance(conditions, Mapping):
            fields["when"] = {key: value if isinstance(value, list) else [value] for key, value in conditions.items()}
        table.append({"path": path, **fields})
    return table


def suggest(space: Iterable[Dimension], trial: Suggests) -> dict[str, Any]:
    """Values of all dimensions that are active, by path, in order."""
    values: dict[str, Any] = {}
    for dimension in space:
        if dimension.active(values):
            values[dimension.path] = dimension.suggest(trial)
    return values


def settings(space: Iterable[Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of dimensions as values of fields: a variant becomes the fields that it stands for."""
    variants = {dimension.path: dimension.variants for dimension in space if dimension.variants}
    fields: dict[str, Any] = {}
    for path, value in values.items():
        fields |= variants[path][value] if path in variants else {path: value}
    return fields


def corners(space: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Assignments that together reach every condition, and every extreme of every dimension under each of them."""
    gates = {path for dimension in space for path in dimension.when}
    gating = [dimension for dimension in space if dimension.path in gates]
    assignments = []
    for chosen in itertools.product(*(dimension.extremes for dimension in gating)):
        fixed = dict(zip((dimension.path for dimension in gating), chosen, strict=True))
        base: dict[str, Any] = {}
        active = []
        for dimension in space:
            if dimension.active(base):
                base[dimension.path] = fixed.get(dimension.path, dimension.extremes[0])
                active.append(dimension)
        assignments.append(base)
        assignments += [
            base | {dimension.path: extreme}
            for dimension in active
            if dimension.path not in fixed
            for extreme in dimension.extremes[1:]
        ]
    return assignments


def grid_size(space: Sequence[Dimension]) -> int | None:
    """How many points the space has; None if a dimension is continuous."""
    if any(dimension.num_values is None for dimension in space):
        return None
    gates = {path for dimension in space for path in dimension.when}

    def count(place: int, values: dict[str, Any]) -> int:
        if place == len(space):
            return 1
        dimension = space[place]
        if not dimension.active(values):
            return count(place + 1, values)
        if dimension.path in gates and dimension.choices is not None:
            return sum(count(place + 1, values | {dimension.path: value}) for value in dimension.choices)
        return (dimension.num_values or 0) * count(place + 1, values)

    return count(0, {})


def check_space(space: Sequence[Dimension], base: Mapping[str, Any]) -> list[Problem]:
    """Every way in which the space leaves what an Experiment allows; empty if it does not."""
    problems: dict[str, Problem] = {}
    seen: set[str] = set()
    for dimension in space:
        for path in dimension.when:
            if path not in seen:
                field = f"space.{dimension.path}.when.{path}"
                problems[field] = Problem(field, "is not a dimension before this one")
        if dimension.path in seen:
            problems[dimension.path] = Problem(f"space.{dimension.path}", "is given twice")
        seen.add(dimension.path)
    # The base by itself as well: what every point overrides would never be looked at.
    for values in ({}, *corners(space)):
        fields = settings(space, values)
        for problem in _invalid(base, fields):
            at = f" (at {', '.join(f'{path}={value}' for path, value in values.items())})" if values else ""
            # A path that the space names is the space's mistake; anything else is the base experiment's.
            mine = any(problem.field.startswith(path) or path.startswith(problem.field) for path in fields)
            field = f"space.{problem.field}" if mine else f"experiment.{problem.field}"
            problems.setdefault(field, Problem(field, problem.message + (at if mine else "")))
    return list(problems.values())


def _invalid(base: Mapping[str, Any], values: Mapping[str, Any]) -> Sequence[Problem]:
    try:
        parse(apply_values(base, values))
    except InvalidInput as error:
        return error.problems
    return ()
