"""The three parts of an L∞ attack, each by itself: random start, projection, signed ascent.

Images are [B, C, H, W] in [0,1]; epsilon and step sizes are in the same pixel units. Gradients are taken with
respect to the input only: nothing is left in `.grad` of a parameter, and no gradient of a weight is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.randomness import Noise

GAUSSIAN_START_STD = 0.001


@dataclass(frozen=True)
class Adversarial:
    """What an inner attack returns, all detached: x* [B, C, H, W], the start x+η, its logits [B, K] and gradient.

    `start_gradient` [B, C, H, W] is that of the attack's own objective, summed over the batch, at the start.
    """

    images: Tensor
    start_images: Tensor
    start_logits: Tensor
    start_gradient: Tensor


def bounds(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Lower and upper end [B, C, H, W] of the ε-ball within [0,1]: `torch.clamp` to them projects into both.

    Made once for all steps of an attack: a projection is then one kernel.
    """
    return (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)


def uniform_start(images: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """x + U(-ε, ε), clamped to [0,1] before any gradient is taken."""
    return (images + noise.uniform(images, -epsilon, epsilon)).clamp(0, 1)


def gaussian_start(images: Tensor, noise: Noise) -> Tensor:
    """x + 0.001·N(0,1), not clamped: the start of TRADES and of the methods that follow it."""
    return images + noise.normal(images, GAUSSIAN_START_STD)


def ascend(
    model: nn.Module,
    images: Tensor,
    start: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> Adversarial:
    """`steps` signed gradient steps that raise `objective(logits)` (a sum over the batch), projected after each.

    An infinite `epsilon` leaves only the box. Raises ValueError if there is no step to take.
    """
    if steps < 1:
        raise ValueError("an attack takes at least one step")
    current, (low, high) = start, bounds(images, epsilon)
    for step in range(steps):
        current = current.detach().requires_grad_()
        logits = model(current)
        (gradient,) = torch.autograd.grad(objective(logits), current)
        if step == 0:
            start_logits, start_gradient = logits.detach(), gradient
        current = torch.clamp(current.detach() + step_size * gradient.sign(), low, high)
    return Adversarial(current, start.detach(), start_logits, start_gradient)


@contextmanager
def batch_norm_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """Run the attack with batch norm in `eval`, or in `train`: as the training step has the modules.

    `train` leaves each flag alone, so that a module frozen in eval mode stays frozen; `eval` sets all of them and
    gives every submodule its own flag back.
    """
    if mode == "train":
        yield
        return
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
