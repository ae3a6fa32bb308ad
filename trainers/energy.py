"""A classifier's logits as energies: E(x) = -logsumexp z(x), E(x,y) = -z_y(x). Energies are in nats.

Throughout this project a delta energy is *natural minus adversarial*. It jumps up when catastrophic overfitting
sets in and falls when robust overfitting does.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
STATISTICS = ("mean", "std", "min", "max", *(f"q{round(100 * q):02d}" for q in QUANTILES))


def marginal_energy(logits: Tensor) -> Tensor:
    """E(x) of logits [B, K] -> [B]. Low energy is high density under the classifier's implicit model."""
    return -logits.logsumexp(dim=1)


def joint_energy(logits: Tensor, labels: Tensor) -> Tensor:
    """E(x, y) of logits [B, K] and labels [B] -> [B]."""
    return -logits.gather(1, labels[:, None]).squeeze(1)


def delta_energies(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(ΔE(x), ΔE(x, y)) [B] each, natural minus adversarial."""
    delta_marginal = marginal_energy(natural_logits) - marginal_energy(adversarial_logits)
    delta_joint = joint_energy(natural_logits, labels) - joint_energy(adversarial_logits, labels)
    return delta_marginal, delta_joint


def kl_energy_parts(natural_logits: Tensor, adversarial_logits: Tensor) -> tuple[Tensor, Tensor]:
    """The two energies [B] whose sum is KL(p(x) || p(x*)) (WEAT, arXiv 2407.06315, proposition 1).

    First Σ_k p_k(x) [E(x*,k) − E(x,k)], the expected rise of the joint energies; second E(x) − E(x*) = ΔE(x).
    """
    joint = (natural_logits.softmax(dim=1) * (natural_logits - adversarial_logits)).sum(dim=1)
    return joint, marginal_energy(natural_logits) - marginal_energy(adversarial_logits)


def summarize(values: Tensor) -> dict[str, float]:
    """`STATISTICS` of values [N]: mean, population std, min, max and quantiles; synchronizes with the device once."""
    values = values.double()
    quantiles = torch.quantile(values, torch.tensor(QUANTILES, dtype=torch.float64, device=values.device))
    moments = torch.stack([values.mean(), values.std(correction=0), values.min(), values.max()])
    return dict(zip(STATISTICS, torch.cat([moments, quantiles]).tolist(), strict=True))


def energy_statistics(natural_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Every energy of a sample and its adversarial twin, summarized: `quantity/statistic` -> value.

    Logits are [N, K] over the whole set (not a batch), so that quantiles are those of the set.
    """
    delta_marginal, delta_joint = delta_energies(natural_logits, adversarial_logits, labels)
    quantities = {
        "natural_energy": marginal_energy(natural_logits),
        "adversarial_energy": marginal_energy(adversarial_logits),
        "natural_joint_energy": joint_energy(natural_logits, labels),
        "adversarial_joint_energy": joint_energy(adversarial_logits, labels),
        "delta_energy": delta_marginal,
        "delta_joint_energy": delta_joint,
    }
    return {
        f"{quantity}/{statistic}": value
        for quantity, values in quantities.items()
        for statistic, value in summarize(values).items()
    }
