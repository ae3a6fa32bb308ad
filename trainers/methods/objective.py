"""A training objective from its name: what the loop minimizes, and what people with their own loop can import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from trainers import catalog, config
from trainers.methods.regularizers import StepTensors, identity


@dataclass(frozen=True)
class Terms:
    """The parts of one batch's loss: `total` [] carries the gradient, `weights` [B] is None where all are 1."""

    total: Tensor
    weights: Tensor | None
    regularizer: Tensor | None


@dataclass(frozen=True)
class Objective:
    """Outer loss, weighting and regularizer of a method, ready to be called on logits [B, K] and labels [B]."""

    outer: Callable[..., Tensor]
    weighting: Callable[..., Tensor] | None
    regularizer: Callable[..., Tensor] | None
    regularizer_start: float
    natural_always: bool

    def regularizes(self, progress: float) -> bool:
        """Whether the regularizer acts at this fraction of the run."""
        return self.regularizer is not None and progress >= self.regularizer_start

    def needs_natural(self, progress: float) -> bool:
        """Whether a natural forward is needed at this fraction of the run."""
        return self.natural_always or self.regularizes(progress)

    def terms(
        self,
        natural_logits: Tensor | None,
        adversarial_logits: Tensor,
        labels: Tensor,
        *,
        start_logits: Tensor | None = None,
        progress: float = 1.0,
        mean_over_ranks: Callable[[Tensor], Tensor] = identity,
    ) -> Terms:
        """mean(weights · per-sample loss) + regularizer, in parts.

        Under DDP each rank calls this on its own rows and DDP averages the gradients: what is no plain mean over the
        batch asks `mean_over_ranks`, so that the result is that of the global batch.
        """
        if natural_logits is None and self.needs_natural(progress):
            raise ValueError("this objective needs natural_logits, the logits at the unperturbed images")
        per_sample = self.outer(natural_logits, adversarial_logits, labels)
        weights = self.weighting(natural_logits, adversarial_logits, labels) if self.weighting else None
        total = (per_sample if weights is None else weights * per_sample).mean()
        penalty = None
        if self.regularizer is not None and natural_logits is not None and self.regularizes(progress):
            step = StepTensors(natural_logits, adversarial_logits, start_logits, labels, mean_over_ranks)
            penalty = self.regularizer(step)
            total = total + penalty
        return Terms(total, weights, None if penalty is None else penalty.detach())

    def __call__(
        self,
        natural_logits: Tensor | None,
        adversarial_logits: Tensor,
        labels: Tensor,
        *,
        start_logits: Tensor | None = None,
        progress: float = 1.0,
    ) -> Tensor:
        """The scalar loss of one batch; `progress` is the fraction of the run (a late regularizer needs it)."""
        return self.terms(
            natural_logits, adversarial_logits, labels, start_logits=start_logits, progress=progress
        ).total


def objective(name: str, **parameters: Any) -> Objective:
    """The objective of a preset: `objective("weat_adv", beta=7.0)(natural_logits, adversarial_logits, labels)`.

    Parameters are the fields of `method`: `beta` is the outer loss's, and `regularizer={"gamma": 0.2}` changes the
    regularizer's. Raises InvalidInput for a name or a parameter that does not exist.
    """
    return build_objective(config.parse({"method": {"name": name, **parameters}}).method)


def build_objective(method: config.Method) -> Objective:
    """The objective of a validated method."""
    outer_entry = catalog.OUTER[method.outer]
    outer = outer_entry.load()
    if method.beta is not None:
        outer = partial(outer, beta=method.beta)
    weighting = regularizer = None
    start = 0.0
    if method.weighting is not None:
        weighting = partial(catalog.WEIGHTING[method.weighting.name].load(), **method.weighting.parameters)
    if method.regularizer is not None:
        parameters = method.regularizer.parameters
        regularizer = partial(catalog.REGULARIZER[method.regularizer.name].load(), **parameters)
        start = float(parameters.get("start", 0.0))
    natural = "natural_logits" in outer_entry.needs or weighting is not None
    return Objective(outer, weighting, regularizer, start, natural)
