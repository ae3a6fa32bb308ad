"""Single-step attacks."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from trainers.attacks.linf import Adversarial, ascend, batch_norm_mode, uniform_start
from trainers.randomness import Noise


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise,
) -> Adversarial:  # fmt: skip
    """One signed step of the cross-entropy from the image itself (Goodfellow et al. 2015, arXiv 1412.6572)."""
    return _single_step(model, images, images, labels, epsilon, step_size, batch_norm)


def fgsm_rs(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise,
) -> Adversarial:  # fmt: skip
    """One step, usually of 1.25 ε, from a uniform start in the ε-ball (Wong et al. 2020, arXiv 2001.03994)."""
    start = uniform_start(images, epsilon, noise)
    return _single_step(model, images, start, labels, epsilon, step_size, batch_norm)


def n_fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise, noise_scale: float = 2.0,
) -> Adversarial:  # fmt: skip
    """One step from uniform noise of `noise_scale`·ε, into [0,1] but not into the ε-ball: up to (k+1)ε from x.

    De Jorge et al. 2022, arXiv 2202.01181: the missing projection is the method, not an omission.
    """
    start = uniform_start(images, noise_scale * epsilon, noise)
    return _single_step(model, images, start, labels, math.inf, step_size, batch_norm)


def _single_step(
    model: nn.Module,
    images: Tensor,
    start: Tensor,
    labels: Tensor,
    epsilon: float,
    step_size: float,
    batch_norm: str,
) -> Adversarial:
    objective = partial(F.cross_entropy, target=labels, reduction="sum")
    with batch_norm_mode(model, batch_norm):
        return ascend(model, images, start, objective, epsilon=epsilon, step_size=step_size, steps=1)
