"""The kinds of rows that the tables of this package hold."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One tunable number or switch: its default, what is allowed and what it means. `above` is an exclusive bound.

    `only_with` are values of the entry's other parameters without which this one changes nothing.
    """

    default: Any
    about: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[Any, ...] | None = None
    only_with: Mapping[str, Any] = field(default_factory=dict)

    def refuse(self, value: object) -> str | None:
        """Why `value` is not allowed, or None if it is."""
        if value is None and None not in (self.choices or ()):
            return f"None is no value; allowed: {self.allowed}; leave it out for the default"
        if self.choices is not None:
            known = any(value == choice and type(value) is type(choice) for choice in self.choices)
            return None if known else f"{value!r} is not one of {list(self.choices)}"
        if isinstance(self.default, bool):
            return None if isinstance(value, bool) else f"{value!r} is not true or false"
        if isinstance(self.default, list):
            numbers = value if isinstance(value, list) else []
            inside = bool(numbers) and all(isinstance(n, (int, float)) and 0 < n < 1 for n in numbers)
            ordered = inside and numbers == sorted(numbers)
            return None if ordered else f"{value!r} is not a rising list of numbers between 0 and 1"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{value!r} is not a number"
        if isinstance(self.default, int) and not isinstance(value, int):
            return f"{value!r} is not a whole number"
        low = self.low is not None and value < self.low
        high = self.high is not None and value > self.high
        above = self.above is not None and value <= self.above
        finite = abs(value) <= sys.float_info.max
        return None if finite and not (low or high or above) else f"{value!r} is out of range; allowed: {self.allowed}"

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices is not None:
            return " | ".join(map(str, self.choices))
        if isinstance(self.default, bool):
            return "true | false"
        lower = f"> {self.above:g}" if self.above is not None else f">= {self.low:g}" if self.low is not None else ""
        upper = f"<= {self.high:g}" if self.high is not None else ""
        return " and ".join(part for part in (lower, upper) if part) or "any number"


@dataclass(frozen=True)
class Entry:
    """One choice of a slot: where its function lives, its parameters, what it needs beyond the adversarial logits.

    `placement` are settings that the objective reads, not the function: when the entry acts, and on what. `needs` may
    depend on parameters: `needs_if` names what is needed only where the parameters have these values. `passes` are the
    entry's own, beside those that the needs of all slots cost together.
    """

    function: str
    about: str
    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    needs_if: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    placement: Mapping[str, Parameter] = field(default_factory=dict)
    passes: int = 0

    @property
    def fields(self) -> Mapping[str, Parameter]:
        """What may be set: the function's parameters and the placement."""
        return {**self.parameters, **self.placement}

    def needed(self, parameters: Mapping[str, Any]) -> frozenset[str]:
        """What this entry needs with these parameters."""
        conditional = {
            name
            for name, values in self.needs_if.items()
            if all(parameters.get(key) == value for key, value in values.items())
        }
        return self.needs | conditional

    def load(self) -> Callable[..., Any]:
        """Import the function (this is where torch comes in)."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Inner(Entry):
    """An inner attack. `relative_step_size` is in units of epsilon; `passes` counts those beside 2 per step.

    `starts_at_image`: the first gradient is that of the cross-entropy at the natural image.
    """

    relative_step_size: float = 1.0
    single_step: bool = False
    starts_at_image: bool = False


@dataclass(frozen=True)
class Outer(Entry):
    """An outer loss. `divergence`: it has a term between the two predictions, on which a weighting may act alone."""

    divergence: bool = False


@dataclass(frozen=True)
class Model(Entry):
    """An architecture. `gigaflop` (a forward of one 32x32 image) and `millions` of parameters at default parameters."""

    gigaflop: float = 0.0
    millions: float = 0.0


@dataclass(frozen=True)
class Dataset:
    """A data set: the module that decodes it (a `decode` function), shape, size, input statistics, the usual ε.

    `files` are what its folder must hold; none: it is bundled. `flip`: whether augmentation mirrors images, by default.
    """

    module: str
    num_classes: int
    channels: int
    size: int
    num_train: int
    num_test: int
    epsilon: str
    holdout: int
    augment: bool
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: str
    files: tuple[str, ...] = ()
    downloadable: bool = True


Pick = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """A published method as a row over the slots; a slot is a name or, with parameters, a mapping as in a study file.

    `beta` is the outer loss's default; None where it has none. `label` is what tables and figures call the method, if
    it is not the row's name.
    """

    inner: str | Pick
    outer: str
    steps: int
    batch_norm: str
    source: str
    about: str
    beta: float | None = None
    weighting: str | Pick | None = None
    regularizer: str | Pick | None = None
    weight_perturbation: str | Pick | None = None
    label: str = ""

    def slot(self, name: str) -> dict[str, Any] | None:
        """What fills one slot, as a mapping with its `name`; None for an empty one."""
        chosen = getattr(self, name)
        if chosen is None:
            return None
        return {"name": chosen} if isinstance(chosen, str) else dict(chosen)


@dataclass(frozen=True)
class Recipe:
    """How a paper trains: a partial experiment, and what differs on some data sets. Given fields replace its own."""

    source: str
    about: str
    settings: Mapping[str, Any]
    on_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
