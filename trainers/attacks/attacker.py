"""Attacks with their settings bound: what training, measuring and checking call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trainers import catalog
from trainers.attacks.linf import Adversarial
from trainers.attacks.pgd import pgd
from trainers.config import Experiment
from trainers.randomness import Noise


@dataclass(frozen=True)
class Attacker:
    """An attack with its settings bound, epsilon and step size in pixels of [0,1]. Equal ones find the same images."""

    function: Callable[..., Adversarial]
    epsilon: float
    step_size: float
    steps: int
    batch_norm: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, epsilon_scale: float = 1.0
    ) -> Adversarial:
        """Attack images [B, C, H, W] with labels [B]; `epsilon_scale` multiplies ε and step size (for a warm-up)."""
        return self.function(
            model, images, labels,
            epsilon=epsilon_scale * self.epsilon, step_size=epsilon_scale * self.step_size, steps=self.steps,
            batch_norm=self.batch_norm, noise=noise, **self.parameters,
        )  # fmt: skip


def training_attack(experiment: Experiment, *, batch_norm: str | None = None) -> Attacker:
    """The inner attack of an experiment; `batch_norm` replaces its mode where it is measured, not trained on."""
    inner, attack = experiment.method.inner, experiment.attack
    return Attacker(
        catalog.INNER[inner.name].load(), float(attack.epsilon), float(attack.step_size), attack.steps,
        batch_norm or attack.batch_norm, dict(inner.parameters),
    )  # fmt: skip


def monitor_attack(epsilon: float, steps: int = 10) -> Attacker:
    """PGD on the cross-entropy with steps of ε/4, one restart, final iterate, eval-mode batch norm."""
    return Attacker(pgd, epsilon, epsilon / 4, steps, "eval", {"start": "uniform"})
