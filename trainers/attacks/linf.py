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


@dataclass(frozen=True)
class Adversarial:
    """What an inner attack returns, all detached: x* [B, C, H, W], the start x+η, and its logits [B, K]."""

    images: Tensor
    start_images: Tensor
    start_logits: Tensor


def project(perturbed: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """Into the ε-ball around `images`, then into [0,1]."""
    return torch.minimum(torch.maximum(perturbed, images - epsilon), images + epsilon).clamp(0, 1)


def uniform_start(images: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """x + U(-ε, ε), clamped to [0,1] before any gradient is taken."""
    return (images + noise.uniform(images, -epsilon, epsilon)).clamp(0, 1)


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
    """`steps` signed gradient steps that raise `objective(logits)` (a sum over the batch), projected after each."""
    current, start_logits = start, None
    for _ in range(steps):
        current = current.detach().requires_grad_()
        logits = model(current)
        (gradient,) = torch.autograd.grad(objective(logits), current)
        if start_logits is None:
            start_logits = logits.detach()
        current = project(current.detach() + step_size * gradient.sign(), images, epsilon)
    if start_logits is None:
        raise ValueError("an attack takes at least one step")
    return Adversarial(current.detach(), start.detach(), start_logits)


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
