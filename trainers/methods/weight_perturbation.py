"""Adversarial weight perturbation: a step against the loss in the weights, undone after the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

Forward = Callable[[Tensor], Tensor]


def awp(
    model: nn.Module, loss: Callable[[Forward], Tensor], *, gamma: float, mean_over_ranks: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """v_l = γ ‖θ_l‖ / ‖g_l‖ · g_l for every weight matrix or kernel (Wu et al. 2020, arXiv 2004.05884).

    By the names of the parameters, each v_l of its weight's shape. g is the gradient of the same loss that is
    minimized, over the global batch; the published code's learning rate of the ascent step cancels. Biases and batch
    norms stay. The forwards see copies of the buffers: batch-norm statistics are those of the update alone.
    """
    weights = {name: weight for name, weight in model.named_parameters() if "weight" in name and weight.dim() > 1}
    value = loss(without_statistics(model))
    gradients = torch.autograd.grad(value, list(weights.values()))
    averaged = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    perturbation = {}
    parts = torch.split(averaged, [weight.numel() for weight in weights.values()])
    for (name, weight), gradient in zip(weights.items(), parts, strict=True):
        size = gamma * weight.detach().norm() / (gradient.norm() + 1e-20)
        perturbation[name] = size * gradient.view_as(weight)
    return perturbation


def without_statistics(model: nn.Module) -> Forward:
    """The model's forward on copies of its buffers: its batch-norm statistics do not notice."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return lambda images: functional_call(model, buffers, (images,))


@contextmanager
def perturbed(model: nn.Module, perturbation: Mapping[str, Tensor]) -> Iterator[None]:
    """The model's parameters moved by `perturbation` (nothing moves if it is empty), moved back at the end."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, change in perturbation.items():
            parameters[name].add_(change)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, change in perturbation.items():
                parameters[name].sub_(change)
