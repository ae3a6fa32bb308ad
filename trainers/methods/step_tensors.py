"""What one training step has at hand for a weighting or a regularizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def identity(value: Tensor) -> Tensor:
    """A statistic of one rank alone is that of the batch."""
    return value


@dataclass(frozen=True)
class StepTensors:
    """Logits [B, K] (the start's are detached), labels [B], input gradients [B, C, H, W]; None where nobody asked.

    `mean_over_ranks` makes a rank's detached statistic that of the global batch; alone it is the identity.
    """

    adversarial_logits: Tensor
    labels: Tensor
    natural_logits: Tensor | None = None
    start_logits: Tensor | None = None
    natural_gradient: Tensor | None = None
    noisy_gradient: Tensor | None = None
    mean_over_ranks: Callable[[Tensor], Tensor] = identity

    def required(self, name: str) -> Tensor:
        """The tensor of that name. Raises ValueError where it was not given."""
        tensor = getattr(self, name)
        if tensor is None:
            raise ValueError(f"this objective needs {name}")
        return tensor  # type: ignore[no-any-return]


def abnormal(before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    """Which examples the attack made *easier*: cross-entropy before > after, strictly. Boolean [B], detached.

    Abnormal adversarial examples (Lin et al. 2023, arXiv 2404.08154), as DER takes them over.
    """
    with torch.no_grad():
        return F.cross_entropy(before, labels, reduction="none") > F.cross_entropy(after, labels, reduction="none")


def over_global(values: Tensor, count: Tensor) -> Tensor:
    """Σ of this rank's values / mean count over ranks: what, averaged over ranks, is the global sum / global count.

    Zero where there is nothing to count.
    """
    return values.sum() / torch.where(count > 0, count, 1.0)
