"""Multi-step projected gradient attacks: one loop, four objectives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.answers import margin
from trainers.attacks.linf import Adversarial, ascend, batch_norm_mode, gaussian_start, uniform_start
from trainers.randomness import Noise


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise, start: str = "uniform",
) -> Adversarial:  # fmt: skip
    """PGD on the cross-entropy; the final iterate (Madry et al. 2018, arXiv 1706.06083).

    `start` is `uniform` in the ε-ball, or `gaussian`: x + 0.001·N(0,1), as MART and MAIL have it.
    """
    begin = uniform_start(images, epsilon, noise) if start == "uniform" else gaussian_start(images, noise)
    objective = partial(F.cross_entropy, target=labels, reduction="sum")
    with batch_norm_mode(model, batch_norm):
        return ascend(model, images, begin, objective, epsilon=epsilon, step_size=step_size, steps=steps)


def pgd_kl(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise,
) -> Adversarial:  # fmt: skip
    """PGD on KL(p(x) || p(x*)) from x + 0.001·N(0,1) (Zhang et al. 2019, arXiv 1901.08573, algorithm 1).

    At x* = x the gradient of the KL is exactly zero, hence the noise. p(x) does not change during the attack: it is
    computed once.
    """
    begin = gaussian_start(images, noise)
    with batch_norm_mode(model, batch_norm):
        with torch.no_grad():
            natural_log_probabilities = F.log_softmax(model(images), dim=1)

        def divergence(logits: Tensor) -> Tensor:
            return F.kl_div(F.log_softmax(logits, dim=1), natural_log_probabilities, log_target=True, reduction="sum")

        return ascend(model, images, begin, divergence, epsilon=epsilon, step_size=step_size, steps=steps)


def pgd_margin(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise, kappa: float = 50.0,
) -> Adversarial:  # fmt: skip
    """CW∞: PGD that lowers max(z_y − max_{j≠y} z_j + κ, 0) from a uniform start.

    The loss is that of Carlini & Wagner 2017, arXiv 1608.04644, eq. f6; in an L∞ ball as in Madry et al. 2018.
    """
    begin = uniform_start(images, epsilon, noise)

    def objective(logits: Tensor) -> Tensor:
        return -(margin(logits, labels) + kappa).clamp(min=0).sum()

    with batch_norm_mode(model, batch_norm):
        return ascend(model, images, begin, objective, epsilon=epsilon, step_size=step_size, steps=steps)


def pgd_targeted(
    model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, step_size: float, steps: int, batch_norm: str, noise: Noise, target: str = "random",
) -> Adversarial:  # fmt: skip
    """PGD that lowers the cross-entropy to a wrong class, from a uniform start (arXiv 1611.01236).

    `target` is `random` (uniform over the wrong classes) or `least_likely` (the least likely class at the start).
    """
    begin = uniform_start(images, epsilon, noise)
    drawn = noise.uniform(labels.to(images.dtype), 0.0, 1.0)  # whatever the target is: later batches meet equal noise
    with batch_norm_mode(model, batch_norm):
        objective = _towards(labels, drawn if target == "random" else None)
        return ascend(model, images, begin, objective, epsilon=epsilon, step_size=step_size, steps=steps)


def _towards(labels: Tensor, drawn: Tensor | None) -> Callable[[Tensor], Tensor]:
    """−CE to wrong classes: by `drawn` [B] in [0,1), or, without it, the least likely at the start of the attack.

    They are chosen when the objective is first asked, which is for the logits of the start, and kept from then on. So
    neither the number of classes nor the least likely of them costs a pass of its own.
    """
    chosen: list[Tensor] = []

    def objective(logits: Tensor) -> Tensor:
        if not chosen:
            if drawn is None:
                chosen.append(logits.detach().scatter(1, labels[:, None], torch.inf).argmin(dim=1))
            else:
                wrong = (drawn * (logits.shape[1] - 1)).long().clamp(max=logits.shape[1] - 2)
                chosen.append(wrong + (wrong >= labels))
        return -F.cross_entropy(logits, chosen[0], reduction="sum")

    return objective
