"""Outer losses: per-sample [B], from logits [B, K] at the natural and the adversarial image and labels [B].

The natural side of every KL keeps its gradient: detaching it is another method.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def ce_adv(natural_logits: Tensor | None, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    """CE(x*): standard adversarial training (Madry et al. 2018, arXiv 1706.06083, eq. 2.1)."""
    return F.cross_entropy(adversarial_logits, labels, reduction="none")


def ce_nat_kl(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, *, beta: float) -> Tensor:
    """CE(x) + β KL(p(x) || p(x*)): TRADES (Zhang et al. 2019, arXiv 1901.08573, eq. 5)."""
    natural_loss = F.cross_entropy(natural_logits, labels, reduction="none")
    return natural_loss + beta * kl_divergence(natural_logits, adversarial_logits)


def ce_adv_kl(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, *, beta: float) -> Tensor:
    """CE(x*) + β KL(p(x) || p(x*)): the unweighted loss of WEAT_ADV (arXiv 2407.06315)."""
    adversarial_loss = F.cross_entropy(adversarial_logits, labels, reduction="none")
    return adversarial_loss + beta * kl_divergence(natural_logits, adversarial_logits)


def kl_divergence(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(p(x) || p(x*)), summed over classes: [B]. From log-probabilities, so nothing is truncated."""
    natural = F.log_softmax(natural_logits, dim=1)
    adversarial = F.log_softmax(adversarial_logits, dim=1)
    return F.kl_div(adversarial, natural, log_target=True, reduction="none").sum(dim=1)
