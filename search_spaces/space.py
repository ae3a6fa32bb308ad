"""What may vary in a study: dimensions over dotted paths of the Experiment, some of them only under a condition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Protocol, Self

from pydantic import BeforeValidator, Field, model_validator

from trainers.config import Section, apply_values, parse
from trainers.pixels import PixelValue
from trainers.problems import InvalidInput, Problem, unknown_name

Bound = Annotated[float, BeforeValidator(lambda value: float(PixelValue(value)))]


class Suggests(Protocol):
    """The part of an Optuna trial that a space needs (so that this room does not import Optuna)."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""

    def suggest_float(
        self, name: str, low: float, high: float, *, log: bool = False, step: float | None = None
    ) -> float:
        """A number between the bounds."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number between the bounds, inclusive."""


class Dimension(Section):
    """One dimension: `choices`, or `low` and `high` (with `integer`, and `log` or `step`), or `variants`.

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
        complaints = list(_of_range(self) if self.choices is None else _of_choices(self, self.choices))
        complaints += [f"when {path}: name at least one value" for path, allowed in self.when.items() if not allowed]
        if complaints:
            raise ValueError("; ".join(complaints))
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
            return trial.suggest_int(self.path, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, log=self.log, step=self.step)

    def read(self, value: Any) -> Any:
        """A value that somebody wrote, as a trial would draw it. Raises ValueError if none would."""
        if self.choices is not None:
            for choice in self.choices:
                if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                    return choice
            raise ValueError(unknown_name(value, map(str, self.choices), "value"))
        assert self.low is not None
        assert self.high is not None
        number = float(PixelValue(value))
        steps = (number - self.low) / (self.step or 1.0) if self.step or self.integer else 0.0
        # Optuna's own tolerance; of a number between two steps it would warn, and use it.
        if not self.low <= number <= self.high or abs(steps - round(steps)) >= 1e-8:
            raise ValueError(f"{value!r} is none of its values: {self.span}")
        return int(number) if self.integer else number

    def never(self, values: Iterable[Any]) -> str | None:
        """Why a condition on these values would never hold or by accident; None if each is one of the dimension's."""
        if self.choices is None and not self.integer:
            return f"a condition is on choices or whole numbers; {self.path} is {self.span}"
        for value in values:
            try:
                if self.read(value) != value:
                    return f"{value!r}: write it as a number"
            except ValueError as error:
                return str(error)
        return None

    @property
    def num_values(self) -> int | None:
        """How many values it has; None if it is continuous."""
        if self.choices is not None:
            return len(self.choices)
        assert self.low is not None
        assert self.high is not None
        if self.integer:
            whole = self._whole
            return (whole[-1] - whole[0]) // whole.step + 1
        return None if self.step is None else int((self.high - self.low) / self.step + 1e-9) + 1

    @property
    def _whole(self) -> range:
        """The values of a whole-numbered dimension."""
        assert self.low is not None
        assert self.high is not None
        return range(int(self.low), int(self.high) + 1, int(self.step or 1))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that must all be valid for the dimension to be: every choice, or both ends and a point between."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        if self.integer:
            # The second as well: 64 and 128 can be divided among two workers, 65 can't.
            return tuple(dict.fromkeys((self._whole[0], self._whole[1], self._whole[-1])))
        # Between 2.0 and 10.0 lie numbers that are no steps of an attack; pi is in no one's unit.
        between = min(self.low + (self.step or (self.high - self.low) / math.pi), self.high)
        return self.low, between, self.high

    @property
    def span(self) -> str:
        """Its values in words."""
        if self.choices is not None:
            return " | ".join(map(str, self.choices))
        named = {"log": self.log, "integer": self.integer, f"step {self.step or 0:g}": self.step}
        kinds = ", ".join(name for name, given in named.items() if given)
        return f"{self.low:g} … {self.high:g}" + (f" ({kinds})" if kinds else "")

    @property
    def condition(self) -> str:
        """When it exists, in words; empty if always."""
        return " and ".join(f"{path} = {' | '.join(map(str, allowed))}" for path, allowed in self.when.items())

    def __str__(self) -> str:
        return f"{self.path}: {self.span}" + (f"  when {self.condition}" if self.when else "")


def _of_choices(dimension: Dimension, choices: tuple[Any, ...]) -> Iterator[str]:
    if not choices:
        yield "give either choices, or low and high"
    if dimension.variants and choices != tuple(dimension.variants):
        yield "the variants are its choices: leave choices out"
    of_ranges = ("low", "high", "log", "step", "integer")
    idle = [name for name in of_ranges if getattr(dimension, name) is not Dimension.model_fields[name].default]
    if idle:
        yield f"give either choices, or low and high: {' and '.join(idle)} would do nothing beside choices"
    # Pairwise, for a choice may be a list; 1 and 1.0 are one for Optuna.
    twice = [choice for place, choice in enumerate(choices) if choice in choices[:place]]
    if twice:
        yield f"the same choice twice: {', '.join(map(repr, twice))}"


def _of_range(dimension: Dimension) -> Iterator[str]:
    low, high, step = dimension.low, dimension.high, dimension.step
    if low is None or high is None:
        yield "give either choices, or low and high"
        return
    if not low < high:
        yield f"low {low:g} must be below high {high:g}"
    elif step is not None and not 0 < step <= (high - low) * (1 + 1e-9):
        yield f"step {step:g} must be above 0 and at most high - low, {high - low:g}"
    if dimension.log and low <= 0:
        yield f"log needs a low above 0, not {low:g}"
    if dimension.log and step is not None:
        yield "log and step exclude each other"
    for name, value in {"low": low, "high": high, "step": step}.items():
        if dimension.integer and value is not None and not value.is_integer():
            yield f"integer needs a whole {name}, not {value:g}"


def read_space(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The YAML forms, `path: [choices]`, `path: {low, high, …}`, `name: {variants: …}`, as fields of `Dimension`s."""
    table = []
    for path, content in raw.items():
        fields: dict[str, Any] = dict(content or {}) if isinstance(content, Mapping | None) else {"choices": content}
        conditions = fields.get("when", {})
        if isinstance(fields.get("variants"), Mapping) and fields["variants"]:
            fields.setdefault("choices", list(fields["variants"]))
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


def corners(space: Sequence[Dimension], together: int = 1) -> list[dict[str, Any]]:
    """Assignments that together reach every condition, and every extreme of every dimension under each of them.

    Up to `together` dimensions leave their first extreme at once.
    """
    gates = {path for dimension in space for path in dimension.when}
    gating = [dimension for dimension in space if dimension.path in gates]
    assignments = []
    for chosen in itertools.product(*(_deciding(gate, space) for gate in gating)):
        fixed = dict(zip((dimension.path for dimension in gating), chosen, strict=True))
        base: dict[str, Any] = {}
        active = []
        for dimension in space:
            if dimension.active(base):
                base[dimension.path] = fixed.get(dimension.path, dimension.extremes[0])
                active.append(dimension)
        free = [dimension for dimension in active if dimension.path not in fixed]
        for count in range(together + 1):
            for moved in itertools.combinations(free, count):
                paths = [dimension.path for dimension in moved]
                others = itertools.product(*(dimension.extremes[1:] for dimension in moved))
                assignments += [base | dict(zip(paths, extremes, strict=True)) for extremes in others]
    return assignments


def _deciding(gate: Dimension, space: Sequence[Dimension]) -> tuple[Any, ...]:
    """Its extremes, and what lies between them but conditions name."""
    named = [value for dimension in space for value in dimension.when.get(gate.path, ())]
    between = [value for value in named if value not in gate.extremes and gate.never([value]) is None]
    return (*gate.extremes, *between)


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
        if dimension.path in gates:  # then it has choices or whole numbers
            each = dimension.choices or dimension._whole
            return sum(count(place + 1, values | {dimension.path: value}) for value in each)
        return (dimension.num_values or 0) * count(place + 1, values)

    return count(0, {})


def check_space(space: Sequence[Dimension], base: Mapping[str, Any]) -> list[Problem]:
    """Every way in which the space leaves what an Experiment allows; empty if it does not."""
    problems: dict[str, Problem] = {}
    seen: dict[str, Dimension] = {}
    for dimension in space:
        place = f"space.{dimension.path}"
        for path, allowed in dimension.when.items():
            field = f"{place}.when.{path}"
            if path not in seen:
                problems[field] = Problem(field, "is not a dimension before this one")
            elif complaint := seen[path].never(allowed):
                problems[field] = Problem(field, complaint)
        if dimension.path in seen:
            problems[dimension.path] = Problem(place, "is given twice")
        seen[dimension.path] = dimension
    points = corners(space, together=2)  # two that are fine by themselves may contradict each other
    reached = {path for values in points for path in values}
    for dimension in space:
        field = f"space.{dimension.path}.when"
        if dimension.path not in reached and not any(known.startswith(field) for known in problems):
            problems[field] = Problem(field, f"no point of the space has {dimension.condition}")
    # The base by itself as well: what every point overrides would never be looked at.
    for values in ({}, *points):
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
