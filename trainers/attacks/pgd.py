"""Multi-step projected gradient attacks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.attacks.linf import Adversarial, ascend, batch_norm_mode, uniform_start
from trainers.randomness import Noise

KL_START_STD = 0.001


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise,
) -> Adversarial:  # fmt: skip
    """PGD on the cross-entropy from a uniform start; the final iterate (Madry et al. 2018, arXiv 1706.06083)."""
    start = uniform_start(images, epsilon, noise)
    objective = partial(F.cross_entropy, target=labels, reduction="sum")
    with batch_norm_mode(model, batch_norm):
        return ascend(model, images, start, objective, epsilon=epsilon, step_size=step_size, steps=steps)


def pgd_kl(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise,
) -> Adversarial:  # fmt: skip
    """PGD on KL(p(x) || p(x*)) from x + 0.001·N(0,1) (Zhang et al. 2019, arXiv 1901.08573, algorithm 1).

    At x* = x the gradient of the KL is exactly zero, hence the noise. p(x) does not change during the attack: it is
    computed once.
    """
    start = images + noise.normal(images, KL_START_STD)
    with batch_norm_mode(model, batch_norm):
        with torch.no_grad():
            natural_log_probabilities = F.log_softmax(model(images), dim=1)

        def divergence(logits: Tensor) -> Tensor:
            return F.kl_div(F.log_softmax(logits, dim=1), natural_log_probabilities, log_target=True, reduction="sum")

        return ascend(model, images, start, divergence, epsilon=epsilon, step_size=step_size, steps=steps)
