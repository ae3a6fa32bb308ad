"""Regularizers: a scalar added to the batch loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.energy import delta_energies


def identity(value: Tensor) -> Tensor:
    """A statistic of one rank alone is that of the batch."""
    return value


@dataclass(frozen=True)
class StepTensors:
    """What one training step has at hand for a regularizer. Logits are [B, K]; the start's are detached.

    `mean_over_ranks` makes a rank's statistic that of the global batch; alone it is the identity.
    """

    natural_logits: Tensor
    adversarial_logits: Tensor
    start_logits: Tensor | None
    labels: Tensor
    mean_over_ranks: Callable[[Tensor], Tensor] = identity


def der(
    step: StepTensors,
    *,
    beta: float,
    gamma: float,
    samples: str = "abnormal",
    start: float = 0.0,
    reference: str = "start",
    divide_by: str = "batch",
    detach_natural: bool = False,
) -> Tensor:
    """β/B · Σ_{i in S} max(ΔE(x_i)² + ΔE(x_i,y_i)² − γ, 0): Delta Energy Regularizer (arXiv 2505.22486).

    S is the abnormal examples of the batch (single-step methods) or all of it (multi-step, late epochs). Stated by
    the paper: the squared norm of the two deltas, the hinge at γ, S. Ours, and so parameters where they can be: the
    hinge per sample, the division by B, the `start` (read by the caller: before it the term is not computed), the
    loss at the start of the attack as the `reference` of abnormality, gradients on both sides.
    """
    natural = step.natural_logits.detach() if detach_natural else step.natural_logits
    delta_marginal, delta_joint = delta_energies(natural, step.adversarial_logits, step.labels)
    hinge = (delta_marginal.square() + delta_joint.square() - gamma).clamp(min=0)
    if samples == "all":
        return beta * hinge.mean()
    before = step.start_logits if reference == "start" else step.natural_logits
    if before is None:
        raise ValueError(
            "samples='abnormal' with reference='start' needs start_logits, the logits at the attack's start"
        )
    selected = abnormal(before, step.adversarial_logits, step.labels).to(hinge.dtype)
    if divide_by == "batch":
        return beta * (hinge * selected).sum() / len(hinge)
    # Ranks' losses are averaged: dividing by the mean count gives the sum over all ranks by |S| over all ranks.
    count = step.mean_over_ranks(selected.sum())
    return beta * (hinge * selected).sum() / torch.where(count > 0, count, 1.0)


def abnormal(before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    """Which examples the attack made *easier*: cross-entropy before > after, strictly. Boolean [B], detached.

    Abnormal adversarial examples (Lin et al. 2023, arXiv 2404.08154), as DER takes them over.
    """
    with torch.no_grad():
        return F.cross_entropy(before, labels, reduction="none") > F.cross_entropy(after, labels, reduction="none")
