"""A training objective from its name: what the loop minimizes, and what people with their own loop can import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from trainers import catalog, config
from trainers.methods.outer import OuterLoss
from trainers.methods.step_tensors import StepTensors
from trainers.problems import InvalidInput


@dataclass(frozen=True)
class Terms:
    """The parts of one batch's loss: `total` [] carries the gradient, `weights` [B] is None where all are 1."""

    total: Tensor
    weights: Tensor | None
    regularizer: Tensor | None


@dataclass(frozen=True)
class BoundTerm:
    """A weighting or a regularizer, bound to its parameters: from which fraction of the run it acts, and on what."""

    function: Callable[[StepTensors], Tensor]
    needs: frozenset[str]
    start: float
    applies_to: str


@dataclass(frozen=True)
class Objective:
    """Outer loss, weighting and regularizer of a method, ready to be called on logits [B, K] and labels [B]."""

    outer: Callable[..., OuterLoss]
    outer_needs: frozenset[str]
    weighting: BoundTerm | None
    regularizer: BoundTerm | None

    def needs(self, epoch_fraction: float) -> frozenset[str]:
        """What must be given, beside adversarial logits and labels, in an epoch that begins at this fraction of all."""
        acting = (
            term for term in (self.weighting, self.regularizer) if term is not None and epoch_fraction >= term.start
        )
        return self.outer_needs.union(*(term.needs for term in acting))

    def terms(self, step: StepTensors, epoch_fraction: float = 1.0) -> Terms:
        """mean(weights · per-sample loss) + regularizer, in parts.

        Under DDP each rank calls this on its own rows and DDP averages the gradients: what is no plain mean over the
        batch asks `step.mean_over_ranks`, so that the result is that of the global batch. Raises ValueError if
        something is missing that a slot needs.
        """
        natural_logits = step.required("natural_logits") if "natural_logits" in self.needs(epoch_fraction) else None
        loss = self.outer(natural_logits, step.adversarial_logits, step.labels)
        classification, divergence, weights = loss.classification, loss.divergence, None
        if self.weighting is not None and epoch_fraction >= self.weighting.start:
            weights = self.weighting.function(step)
            if self.weighting.applies_to != "divergence":
                classification = weights * classification
            if self.weighting.applies_to != "classification" and divergence is not None:
                divergence = weights * divergence
        total = (classification if divergence is None else classification + divergence).mean()
        penalty = None
        if self.regularizer is not None and epoch_fraction >= self.regularizer.start:
            penalty = self.regularizer.function(step)
            total = total + penalty
        return Terms(
            total, None if weights is None else weights.detach(), None if penalty is None else penalty.detach()
        )

    def __call__(
        self,
        natural_logits: Tensor | None,
        adversarial_logits: Tensor,
        labels: Tensor,
        *,
        start_logits: Tensor | None = None,
        natural_gradient: Tensor | None = None,
        noisy_gradient: Tensor | None = None,
        epoch_fraction: float = 1.0,
    ) -> Tensor:
        """The loss [] of one batch, of logits [B, K], labels [B] and, where a regularizer needs them, input gradients.

        Those are [B, C, H, W]: of the cross-entropy at x, and at x + noise, the latter differentiable. `epoch_fraction`
        is the share of the epochs that are over (what starts late needs it). Raises ValueError for something missing
        that a slot needs.
        """
        step = StepTensors(
            adversarial_logits, labels, natural_logits, start_logits, natural_gradient, noisy_gradient
        )  # fmt: skip
        return self.terms(step, epoch_fraction).total


def objective(name: str, *, data: str = "cifar10", epsilon: float | str = "8/255", **parameters: Any) -> Objective:
    """The objective of a preset: `objective("weat_adv", beta=7.0)(natural_logits, adversarial_logits, labels)`.

    Parameters are the fields of `method`: `beta` is the outer loss's, and `regularizer={"gamma": 0.2}` changes the
    regularizer's. Strengths that the papers choose by data set and training ε follow `data` and `epsilon`. Raises
    InvalidInput for a name or a parameter that does not exist, and for a method that also perturbs the weights: its
    loss is no function of logits.
    """
    raw = {"data": data, "attack": {"epsilon": epsilon}, "method": {"name": name, **parameters}}
    method = config.parse(raw).method
    if method.weight_perturbation is not None:
        raise InvalidInput.single(
            "method.weight_perturbation",
            f"{method.weight_perturbation.name!r}: acts on the weights around a loss, which logits know nothing of; "
            "take the loss with weight_perturbation=None, and in your loop awp and perturbed of "
            "trainers.methods.weight_perturbation",
        )
    return build_objective(method)


def build_objective(method: config.Method) -> Objective:
    """The objective of a validated method."""
    entry = catalog.OUTER[method.outer.name]
    beta = {} if method.beta is None else {"beta": method.beta}
    outer = partial(entry.load(), **method.outer.parameters, **beta)
    weighting = None if method.weighting is None else _bound(catalog.WEIGHTING, method.weighting)
    regularizer = None if method.regularizer is None else _bound(catalog.REGULARIZER, method.regularizer)
    return Objective(outer, entry.needed(method.outer.parameters), weighting, regularizer)


def _bound(entries: Mapping[str, catalog.Entry], choice: config.Choice) -> BoundTerm:
    entry, chosen = entries[choice.name], choice.parameters
    function = partial(entry.load(), **{name: chosen[name] for name in entry.parameters})
    return BoundTerm(function, entry.needed(chosen), float(chosen.get("start", 0.0)), chosen.get("applies_to", "all"))
