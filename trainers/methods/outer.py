"""Outer losses: per-sample terms, from logits [B, K] at the natural and the adversarial image and labels [B].

The natural side of every KL keeps its gradient: detaching it is another method.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from trainers.answers import best_wrong


@dataclass(frozen=True)
class OuterLoss:
    """The two terms [B] of a loss, apart because a weighting may be on one of them; β is in the divergence."""

    classification: Tensor
    divergence: Tensor | None = None


def ce_adv(natural_logits: Tensor | None, adversarial_logits: Tensor, labels: Tensor) -> OuterLoss:
    """CE(x*): standard adversarial training (Madry et al. 2018, arXiv 1706.06083, eq. 2.1)."""
    return OuterLoss(F.cross_entropy(adversarial_logits, labels, reduction="none"))


def bce_adv(natural_logits: Tensor | None, adversarial_logits: Tensor, labels: Tensor) -> OuterLoss:
    """BCE(x*): MART's boosted cross-entropy alone (Wang et al. 2020, ICLR 2020)."""
    return OuterLoss(boosted_cross_entropy(adversarial_logits, labels))


def ce_nat_kl(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, *, beta: float) -> OuterLoss:
    """CE(x) + β KL(p(x) || p(x*)): TRADES (Zhang et al. 2019, arXiv 1901.08573, eq. 5)."""
    natural_loss = F.cross_entropy(natural_logits, labels, reduction="none")
    return OuterLoss(natural_loss, beta * kl_divergence(natural_logits, adversarial_logits))


def ce_adv_kl(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, *, beta: float) -> OuterLoss:
    """CE(x*) + β KL(p(x) || p(x*)): the unweighted loss of WEAT_ADV (arXiv 2407.06315)."""
    adversarial_loss = F.cross_entropy(adversarial_logits, labels, reduction="none")
    return OuterLoss(adversarial_loss, beta * kl_divergence(natural_logits, adversarial_logits))


def bce_adv_kl(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, *, beta: float) -> OuterLoss:
    """BCE(x*) + β KL(p(x) || p(x*)): MART's loss, without its factor 1 − p_y(x) (Wang et al. 2020, ICLR 2020)."""
    adversarial_loss = boosted_cross_entropy(adversarial_logits, labels)
    return OuterLoss(adversarial_loss, beta * kl_divergence(natural_logits, adversarial_logits))


def kl_divergence(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(p(x) || p(x*)), summed over classes: [B]. From log-probabilities, so nothing is truncated."""
    natural = F.log_softmax(natural_logits, dim=1)
    adversarial = F.log_softmax(adversarial_logits, dim=1)
    return F.kl_div(adversarial, natural, log_target=True, reduction="none").sum(dim=1)


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """CE − log(1.0001 − best wrong probability): [B]. The published code's constants keep the logarithm finite."""
    wrong = best_wrong(logits.softmax(dim=1), labels)
    return F.cross_entropy(logits, labels, reduction="none") - (1.0001 - wrong + 1e-12).log()
