"""Abnormal adversarial examples of high energy: what precedes catastrophic overfitting (DER, arXiv 2505.22486).

An example is abnormal if the attack lowered its loss. The paper blames those of *high energy* rather than their
number; where high begins it does not say in what is available of it, so three definitions are counted side by side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainers.energy import marginal_energy
from trainers.methods.step_tensors import abnormal


def above_natural_quantile(natural_energy: Tensor, adversarial_energy: Tensor, *, quantile: float = 0.9) -> Tensor:
    """Which E(x*) lie above a quantile of the natural energies E(x) of the whole set. Energies and result [N]."""
    return adversarial_energy > torch.quantile(natural_energy, quantile)


def above_own_natural(natural_energy: Tensor, adversarial_energy: Tensor, *, rise: float = 1.0) -> Tensor:
    """Which E(x*) lie more than `rise` nats above their own E(x). Energies and result [N]."""
    return adversarial_energy > natural_energy + rise


def largest_change(natural_energy: Tensor, adversarial_energy: Tensor, *, share: float = 0.1) -> Tensor:
    """Which |ΔE(x)| belong to this share of the largest of the whole set. Energies and result [N]."""
    change = (natural_energy - adversarial_energy).abs()
    return change > torch.quantile(change, 1 - share)


HIGH_ENERGY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quantile": above_natural_quantile,
    "rise": above_own_natural,
    "change": largest_change,
}


def abnormality_statistics(
    natural_logits: Tensor, start_logits: Tensor, adversarial_logits: Tensor, labels: Tensor
) -> dict[str, float]:
    """How many examples are abnormal, how many of those have a high energy, and their mean E(x*).

    Logits are [N, K] over the whole set, in float64 here so that quantiles of close energies keep them apart. Without
    an abnormal example the mean is left out.
    """
    natural, adversarial = (marginal_energy(logits.double()) for logits in (natural_logits, adversarial_logits))
    is_abnormal = abnormal(start_logits, adversarial_logits, labels)
    masks = {name: is_abnormal & high(natural, adversarial) for name, high in HIGH_ENERGY.items()}
    counts = torch.stack([mask.sum() for mask in (is_abnormal, *masks.values())]).tolist()
    statistics = {"abnormal_count": float(counts[0]), "abnormal_fraction": counts[0] / len(labels)}
    statistics |= {
        f"high_energy_abnormal_count/{name}": float(count) for name, count in zip(masks, counts[1:], strict=True)
    }
    if counts[0]:
        statistics["abnormal_energy/mean"] = float(adversarial[is_abnormal].mean())
    return statistics
