"""Per-sample weights [B] of the outer loss, always detached."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainers.energy import marginal_energy


def energy_weight(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    """1 / softplus(|E(x)|), from the train-mode natural logits (WEAT, arXiv 2407.06315).

    The loss is divided by B, not by the sum of the weights: as |E| grows, so shrinks the effective learning rate.
    """
    return 1.0 / F.softplus(marginal_energy(natural_logits.detach()).abs())
