"""The one table of this package: what each name means, what it takes, what it costs, where it comes from.

No torch in here: `--help`, validation, `methods` and `--dry-run` read this table and answer at once.
A method is a choice in four slots (inner attack, outer loss, weighting, regularizer); the names of the papers
are presets, rows over the slots. To add a method: one pure function, one row here, one test vector.

Costs are counted in passes: 1 = one forward of one image; a backward to the input costs 1, to the weights 1 more.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One tunable number or switch: its default, what is allowed and what it means. `above` is an exclusive bound."""

    default: Any
    about: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[Any, ...] | None = None

    def refuse(self, value: object) -> str | None:
        """Why `value` is not allowed, or None if it is."""
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
    """One choice of a slot: where its function lives, what it needs beyond the adversarial logits, its parameters."""

    function: str
    about: str
    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()

    def load(self) -> Callable[..., Any]:
        """Import the function (this is where torch comes in)."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Inner(Entry):
    """An inner attack. `relative_step_size` is in units of epsilon; `passes` counts those beside 2 per step."""

    relative_step_size: float = 1.0
    single_step: bool = False
    passes: int = 0


@dataclass(frozen=True)
class Model(Entry):
    """An architecture. `gigaflop` (a forward of one 32x32 image) and `millions` of parameters at default parameters."""

    gigaflop: float = 0.0
    millions: float = 0.0


@dataclass(frozen=True)
class Dataset:
    """A data set: the module that loads it (a `load` function), shape, size, input statistics, what ε is usual."""

    module: str
    num_classes: int
    channels: int
    num_train: int
    num_test: int
    epsilon: str
    holdout: int
    augment: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: str


@dataclass(frozen=True)
class Preset:
    """A published method as a row over the slots. `beta` is the outer loss's default; None where it has none."""

    inner: str
    outer: str
    steps: int
    batch_norm: str
    source: str
    about: str
    beta: float | None = None
    weighting: str | None = None
    regularizer: str | None = None


INNER: dict[str, Inner] = {
    "fgsm": Inner(
        "trainers.attacks.fgsm:fgsm",
        "one step from the image",
        "Goodfellow et al. 2015, arXiv 1412.6572",
        relative_step_size=1.0,
        single_step=True,
    ),
    "fgsm_rs": Inner(
        "trainers.attacks.fgsm:fgsm_rs",
        "one step of 1.25 ε from a uniform start",
        "Wong et al. 2020, arXiv 2001.03994",
        relative_step_size=1.25,
        single_step=True,
    ),
    "pgd": Inner(
        "trainers.attacks.pgd:pgd",
        "cross-entropy, uniform start",
        "Madry et al. 2018, arXiv 1706.06083",
        relative_step_size=0.25,
    ),
    "pgd_kl": Inner(
        "trainers.attacks.pgd:pgd_kl",
        "KL to the natural prediction, Gaussian start of 0.001",
        "Zhang et al. 2019, arXiv 1901.08573",
        relative_step_size=0.25,
        passes=1,
    ),
}

_NATURAL = frozenset({"natural_logits"})

OUTER: dict[str, Entry] = {
    "ce_adv": Entry("trainers.methods.outer:ce_adv", "CE(x*)", "Madry et al. 2018, arXiv 1706.06083, eq. 2.1"),
    "ce_nat_kl": Entry(
        "trainers.methods.outer:ce_nat_kl",
        "CE(x) + β KL(p(x) || p(x*))",
        "Zhang et al. 2019, arXiv 1901.08573, eq. 5",
        parameters={"beta": Parameter(6.0, "strength of the KL term", low=0.0)},
        needs=_NATURAL,
    ),
    "ce_adv_kl": Entry(
        "trainers.methods.outer:ce_adv_kl",
        "CE(x*) + β KL(p(x) || p(x*))",
        "WEAT, arXiv 2407.06315",
        parameters={"beta": Parameter(6.0, "strength of the KL term", low=0.0)},
        needs=_NATURAL,
    ),
}

WEIGHTING: dict[str, Entry] = {
    "energy": Entry(
        "trainers.methods.weighting:energy_weight",
        "1 / softplus(|E(x)|), detached",
        "WEAT, arXiv 2407.06315",
        needs=_NATURAL,
    ),
}

REGULARIZER: dict[str, Entry] = {
    "der": Entry(
        "trainers.methods.regularizers:der",
        "β · mean over S of max(ΔE(x)² + ΔE(x,y)² − γ, 0)",
        "DER, arXiv 2505.22486",
        parameters={
            "beta": Parameter(100.0, "strength; multi-step methods default to 0.25", low=0.0),
            "gamma": Parameter(0.1, "what is free of charge, in squared energy", low=0.0),
            "samples": Parameter(
                "abnormal",
                "S: abnormal adversarial examples, or all (default of multi-step methods)",
                choices=("abnormal", "all"),
            ),
            "start": Parameter(
                0.0,
                "fraction of the epochs before it acts; multi-step methods: the first learning-rate drop or 0.75",
                low=0.0,
                high=1.0,
            ),
            "reference": Parameter(
                "start",
                "an example is abnormal if the attack lowered the loss against its start, or the natural image",
                choices=("start", "natural"),
            ),
            "divide_by": Parameter("batch", "divide the sum by the batch or by |S|", choices=("batch", "samples")),
            "detach_natural": Parameter(False, "no gradient through E(x); diverges at a large beta"),
        },
        needs=frozenset({"natural_logits", "start_logits"}),
    ),
}

_BASE_PRESETS: dict[str, Preset] = {
    "fgsm": Preset("fgsm", "ce_adv", 1, "train", "Goodfellow et al. 2015, arXiv 1412.6572",
                   "single step, no random start: collapses at a large ε"),
    "fgsm_rs": Preset("fgsm_rs", "ce_adv", 1, "train", "Wong et al. 2020, arXiv 2001.03994",
                      "single step from a random start"),
    "sat": Preset("pgd", "ce_adv", 10, "train", "Madry et al. 2018; Rice et al. 2020, arXiv 2002.11569",
                  "standard adversarial training on PGD examples"),
    "trades": Preset("pgd_kl", "ce_nat_kl", 10, "eval", "Zhang et al. 2019, arXiv 1901.08573",
                     "natural accuracy against KL robustness", beta=6.0),
    "weat_nat": Preset("pgd_kl", "ce_nat_kl", 10, "eval", "WEAT, arXiv 2407.06315",
                       "TRADES weighted by energy", beta=6.0, weighting="energy"),
    "weat_adv": Preset("pgd_kl", "ce_adv_kl", 10, "eval", "WEAT, arXiv 2407.06315",
                       "CE on adversarial examples + KL, weighted by energy", beta=7.0, weighting="energy"),
}  # fmt: skip

PRESETS: dict[str, Preset] = _BASE_PRESETS | {
    f"{name}_der": replace(
        preset, regularizer="der", about=f"{name} with the Delta Energy Regularizer",
        source=f"DER, arXiv 2505.22486; {preset.source}",
    )
    for name, preset in _BASE_PRESETS.items()
}  # fmt: skip

_WIDTH = Parameter(64, "channels of the first stage", low=1)
_BLOCKS = Parameter(2, "blocks in each of the four stages", low=1)

MODELS: dict[str, Model] = {
    "small": Model(
        "trainers.models.small:small", "three conv-norm-ReLU blocks, for a CPU", "this project",
        parameters={
            "width": Parameter(16, "channels of the first block", low=1),
            "norm": Parameter("batch", "normalization layer", choices=("batch", "group")),
            "stem_stride": Parameter(1, "stride of the first block; 2 is three times faster", choices=(1, 2)),
        },
        gigaflop=0.0056, millions=0.024,
    ),
    "preact_resnet18": Model(
        "trainers.models.preact_resnet:preact_resnet18", "pre-activation ResNet-18", "He et al. 2016, arXiv 1603.05027",
        parameters={
            "width": _WIDTH,
            "blocks_per_stage": _BLOCKS,
            "shortcut": Parameter(
                "activated", "what a convolutional shortcut reads: the block's input after BN-ReLU, or raw",
                choices=("activated", "raw"),
            ),
            "final_norm": Parameter(True, "BN-ReLU before the pooling"),
        },
        gigaflop=1.11, millions=11.17,
    ),
    "resnet18": Model(
        "trainers.models.resnet:resnet18", "ResNet-18 with a 3x3 stem", "He et al. 2016, arXiv 1512.03385",
        parameters={"width": _WIDTH, "blocks_per_stage": _BLOCKS},
        gigaflop=1.11, millions=11.17,
    ),
}  # fmt: skip

SCHEDULES: dict[str, Entry] = {
    "triangular": Entry(
        "trainers.schedules:triangular", "linear up to the peak, linear down to zero",
        "Wong et al. 2020, arXiv 2001.03994",
        parameters={"peak": Parameter(0.5, "where the peak lies, as a fraction of the run", above=0.0, high=0.99)},
    ),
    "onecycle": Entry(
        "trainers.schedules:onecycle", "cosine up from 1/25, cosine down to 4e-6 of the peak", "WEAT, arXiv 2407.06315",
        parameters={"peak": Parameter(0.25, "where the peak lies, as a fraction of the run", above=0.0, high=0.99)},
    ),
    "piecewise": Entry(
        "trainers.schedules:piecewise", "divided at each milestone", "Rice et al. 2020, arXiv 2002.11569",
        parameters={
            "milestones": Parameter([0.5, 0.75], "where it drops, as fractions of the run"),
            "factor": Parameter(0.1, "what it is multiplied by at a drop", above=0.0, high=1.0),
        },
    ),
    "constant": Entry("trainers.schedules:constant", "no schedule", "-"),
}  # fmt: skip

DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "trainers.data.digits", 10, 1, 1500, 297, epsilon="0.12", holdout=200, augment=False, mean=(0.0,), std=(1.0,),
        about="8x8 handwritten digits of scikit-learn, bundled, repeated to `size`",
    ),
    "cifar10": Dataset(
        "trainers.data.cifar", 10, 3, 50_000, 10_000, epsilon="8/255", holdout=1_000, augment=True,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616),
        about="32x32 photographs, from a folder (torchvision's layout)",
    ),
}  # fmt: skip


def training_passes(inner: str, outer: str, weighting: str | None, regularizer: str | None, steps: int) -> int:
    """Passes per training image: attack, then forward and full backward of x*, and of x where a slot needs it."""
    attack = INNER[inner]
    chosen = [OUTER[outer]]
    chosen += [WEIGHTING[weighting]] if weighting else []
    chosen += [REGULARIZER[regularizer]] if regularizer else []
    natural = any("natural_logits" in entry.needs for entry in chosen)
    return 2 * steps + attack.passes + 3 + 3 * natural
