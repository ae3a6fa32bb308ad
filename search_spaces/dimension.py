"""One dimension of a study: what values it has, and under which condition it exists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Protocol, Self

from pydantic import BeforeValidator, Field, model_validator

from trainers.config import Section
from trainers.pixels import PixelValue
from trainers.problems import unknown_name

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
        low, high = self._ends
        if self.integer:
            return trial.suggest_int(self.path, int(low), int(high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.path, low, high, log=self.log, step=self.step)

    def read(self, value: Any) -> Any:
        """A value that somebody wrote, as a trial would draw it. Raises ValueError if none would."""
        if self.choices is not None:
            for choice in self.choices:
                if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                    return choice
            raise ValueError(unknown_name(value, map(str, self.choices), "value"))
        low, high = self._ends
        number = float(PixelValue(value))
        steps = (number - low) / (self.step or 1.0) if self.step or self.integer else 0.0
        # Optuna's own tolerance; of a number between two steps it would warn, and use it.
        if not low <= number <= high or abs(steps - round(steps)) >= 1e-8:
            raise ValueError(f"{value!r} is none of its values: {self.span}")
        return int(number) if self.integer else number

    def refuse_condition(self, values: Iterable[Any]) -> str | None:
        """Why a condition on these values would never hold, or by accident; None if each is one of the dimension's."""
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
        if self.step is None and not self.integer:
            return None
        low, high = self._ends
        return int((high - low) / (self.step or 1.0) + 1e-9) + 1

    @property
    def values(self) -> Sequence[Any]:
        """All of them in order; of choices or whole numbers only."""
        if self.choices is not None:
            return self.choices
        low, high = self._ends
        return range(int(low), int(high) + 1, int(self.step or 1))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that must all be valid for the dimension to be: every choice, or both ends and a point between."""
        if self.choices is not None:
            return self.choices
        if self.integer:
            # The second as well: 64 and 128 can be divided among two workers, 65 can't.
            return tuple(dict.fromkeys((self.values[0], self.values[1], self.values[-1])))
        low, high = self._ends
        # Between 2.0 and 10.0 lie numbers that are no steps of an attack; pi is in no one's unit.
        between = min(low + (self.step or (high - low) / math.pi), high)
        return low, between, high

    @property
    def _ends(self) -> tuple[float, float]:
        """(low, high) of a range."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

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
