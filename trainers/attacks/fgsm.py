"""Single-step attacks."""

from __future__ import annotations

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
