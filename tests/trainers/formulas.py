"""Energies and losses of arXiv 2407.06315 in elementary float64 operations, and batches of logits to try them on.

Written from the formulas; nothing of the package is used, so that tests compare two independent computations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

B, K = 9, 10
ROWS = torch.arange(B)


@dataclass
class Batch:
    """Float64 logits at the image, at x* and at the attack's start, labels, and two input gradients."""

    natural: Tensor
    adversarial: Tensor
    start: Tensor
    labels: Tensor
    natural_gradient: Tensor
    noisy_gradient: Tensor


def batch(scale=3.0, seed=5):
    """A random batch with normal and abnormal examples; logits have the standard deviation `scale`."""
    source = torch.Generator().manual_seed(seed)
    natural, adversarial, start = scale * torch.randn(3, B, K, generator=source, dtype=torch.float64)
    labels = torch.randint(K, (B,), generator=source)
    gradients = torch.randn(2, B, 1, 4, 4, generator=source, dtype=torch.float64)
    adversarial[:3] = start[:3] + 0.1 * scale * torch.nn.functional.one_hot(labels[:3], K)
    start[:3] += 3 * scale  # no loss changes, but these vary more than the normal ones: AAER's last term acts
    found = Batch(natural, adversarial, start, labels, *gradients)
    assert 3 <= is_abnormal(found).sum() < B
    return found


def lse(z):
    """log Σ exp, shifted by hand."""
    top = z.detach().max(dim=1, keepdim=True).values
    return ((z - top).exp().sum(1, keepdim=True).log() + top)[:, 0]


def ce(z, y):
    """E(x, y) − E(x)."""
    return lse(z) - z[torch.arange(len(z)), y]


def probabilities(z):
    return (z - lse(z)[:, None]).exp()


def kl(z, z_adv):
    """WEAT, proposition 1: Σ p (E(x*, k) − E(x, k)) + E(x) − E(x*)."""
    return (probabilities(z) * (z - z_adv)).sum(1) - lse(z) + lse(z_adv)


def wrong(z, y):
    """The best wrong probability."""
    p = probabilities(z)
    return torch.stack([torch.cat([row[:label], row[label + 1 :]]).max() for row, label in zip(p, y, strict=True)])


def boosted(z, y):
    return ce(z, y) - torch.log(1.0001 - wrong(z, y) + 1e-12)


def energy_weight(z):
    energy = lse(z).detach().abs()
    return 1 / torch.where(energy > 30, energy, torch.log(1 + torch.exp(energy)))


def margin_weight(z_adv, y, slope, bias):
    pm = (wrong(z_adv, y) - probabilities(z_adv)[ROWS, y]).detach()
    return 3 / (1 + torch.exp(-slope * (pm + bias)))


def is_abnormal(b, before=None):
    return ce(b.start if before is None else before, b.labels).detach() > ce(b.adversarial, b.labels).detach()


def squared_norm(b):
    """ΔE(x)² + ΔE(x, y)²."""
    joint = b.adversarial[ROWS, b.labels] - b.natural[ROWS, b.labels]
    return (lse(b.adversarial) - lse(b.natural)) ** 2 + joint**2


def der(b, beta, gamma, chosen):
    hinge = (squared_norm(b) - gamma).clamp(min=0)
    return beta * (hinge * chosen).sum() / B


def aaer(b, loss, variation, loss_gradient=False):
    chosen = is_abnormal(b)
    before, after = ce(b.start, b.labels), ce(b.adversarial, b.labels)
    distance = ((b.start - b.adversarial) ** 2).sum(1)
    fall = (before - (after if loss_gradient else after.detach()))[chosen].mean()
    excess = distance[chosen].mean() - distance[~chosen].mean().detach()
    return chosen.double().mean() * (loss * fall + variation * excess.clamp(min=0))


def grad_align(b, strength):
    first, second = b.natural_gradient.flatten(1), b.noisy_gradient.flatten(1)
    cosine = (first * second).sum(1) / ((first**2).sum(1).sqrt() * (second**2).sum(1).sqrt())
    return strength * (1 - cosine.mean())


# Every preset, from its paper's formula. Single-step DER: β 100, γ 0.1 on abnormal examples; multi-step: 0.25 on all.
BASE = {
    "fgsm": lambda b: ce(b.adversarial, b.labels).mean(),
    "fgsm_rs": lambda b: ce(b.adversarial, b.labels).mean(),
    "n_fgsm": lambda b: ce(b.adversarial, b.labels).mean(),
    "sat": lambda b: ce(b.adversarial, b.labels).mean(),
    "sat_awp": lambda b: ce(b.adversarial, b.labels).mean(),
    "trades": lambda b: (ce(b.natural, b.labels) + 6 * kl(b.natural, b.adversarial)).mean(),
    "trades_awp": lambda b: (ce(b.natural, b.labels) + 6 * kl(b.natural, b.adversarial)).mean(),
    "mart": lambda b: (
        boosted(b.adversarial, b.labels)
        + 5 * kl(b.natural, b.adversarial) * (1.0000001 - probabilities(b.natural)[ROWS, b.labels])
    ).mean(),
    "mail_at": lambda b: (
        margin_weight(b.adversarial, b.labels, 10, -0.5) * ce(b.adversarial, b.labels)
    ).mean(),
    "mail_trades": lambda b: (
        ce(b.natural, b.labels)
        + 5 * margin_weight(b.adversarial, b.labels, 2, 0) * kl(b.natural, b.adversarial)
    ).mean(),
    "weat_nat": lambda b: (
        energy_weight(b.natural) * (ce(b.natural, b.labels) + 6 * kl(b.natural, b.adversarial))
    ).mean(),
    "weat_adv": lambda b: (
        energy_weight(b.natural) * (ce(b.adversarial, b.labels) + 7 * kl(b.natural, b.adversarial))
    ).mean(),
}  # fmt: skip
SINGLE_STEP = ("fgsm", "fgsm_rs", "n_fgsm")
FORMULAS = {
    **BASE,
    "grad_align": lambda b: ce(b.adversarial, b.labels).mean() + grad_align(b, 0.2),
    "aaer": lambda b: ce(b.adversarial, b.labels).mean() + aaer(b, 2.5, 1.5),
    "aaer_n": lambda b: ce(b.adversarial, b.labels).mean() + aaer(b, 1.5, 0.15),
    **{
        f"{name}_der": (lambda b, base=base: base(b) + der(b, 100, 0.1, is_abnormal(b)))
        if name in SINGLE_STEP
        else (lambda b, base=base: base(b) + der(b, 0.25, 0.1, torch.ones(B)))
        for name, base in BASE.items()
    },
}
