"""Attacks with their settings bound: what training, measuring and checking call."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from trainers import catalog
from trainers.attacks.linf import Adversarial
from trainers.attacks.pgd import pgd
from trainers.config import Experiment
from trainers.randomness import Noise


class Attacker(Protocol):
    """An attack with its settings bound; `scale` multiplies epsilon and the step size (training may warm up)."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, scale: float = 1.0
    ) -> Adversarial:
        """Attack images [B, C, H, W] with labels [B]."""


def training_attack(experiment: Experiment, *, batch_norm: str | None = None) -> Attacker:
    """The inner attack of an experiment; `batch_norm` replaces its mode where it is measured, not trained on."""
    inner, attack = experiment.method.inner, experiment.attack
    function = catalog.INNER[inner.name].load()

    def attacker(model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, scale: float = 1.0) -> Adversarial:
        result: Adversarial = function(
            model, images, labels,
            epsilon=scale * float(attack.epsilon), step_size=scale * float(attack.step_size), steps=attack.steps,
            batch_norm=batch_norm or attack.batch_norm, noise=noise, **inner.parameters,
        )  # fmt: skip
        return result

    return attacker


def monitor_attack(epsilon: float, steps: int = 10) -> Attacker:
    """PGD on the cross-entropy with steps of ε/4, one restart, final iterate, eval-mode batch norm."""

    def attacker(model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, scale: float = 1.0) -> Adversarial:
        return pgd(
            model, images, labels,
            epsilon=scale * epsilon, step_size=scale * epsilon / 4, steps=steps, batch_norm="eval", noise=noise,
        )  # fmt: skip

    return attacker
