"""Stochastic gradient Langevin dynamics with inertia on the joint energy (WEAT, arXiv 2407.06315, eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.data.images import ImageSet
from trainers.energy import joint_energy
from trainers.generation.settings import TOLERANCE, Dynamics


@dataclass(frozen=True)
class Goal:
    """When a chain is done: E(x,y) within `tolerance` of its class's mean energy, in standard deviations, or below it.

    `mean` and `deviation` [K] are those of E(x,y) over training images of each class, in nats. The squared distance is
    the form of WEAT's code; the tolerance, and that crossing the mean ends a chain too, are this project's.
    """

    mean: Tensor
    deviation: Tensor
    tolerance: float = TOLERANCE

    def reached(self, energy: Tensor, labels: Tensor) -> Tensor:
        """Whether each chain [B] is done at its energy [B]."""
        distance = energy - self.mean[labels]
        return (distance.square() < (self.tolerance * self.deviation[labels]).square()) | (distance < 0)


@dataclass(frozen=True)
class Generated:
    """Images [B, C, H, W] in [0,1] in the order of the starts, and how they came about.

    `steps` [B] is how many steps each chain took. `target_energy` and `other_energy` [steps + 1, K] are sums over the
    chains of a class of E(x_n, y) and of the mean of E(x_n, k) over the other classes k; a chain that is done counts
    with its last energies. `chains` [K] is how many there are of each class.
    """

    images: Tensor
    steps: Tensor
    target_energy: Tensor
    other_energy: Tensor
    chains: Tensor


# How many steps pass between looks at which chains are done: each look waits for the device.
_BETWEEN_LOOKS = 20


def generate(
    model: nn.Module, starts: Tensor, labels: Tensor, dynamics: Dynamics, generator: torch.Generator,
    goal: Goal | None = None,
) -> Generated:  # fmt: skip
    """v ← ζ v − η/2 ∇_x E(x,y), x ← clip(x + v + noise), from `starts` [B, C, H, W] for `labels` [B], one batch.

    `model` is frozen and in eval mode. The gradient is that of the sum over chains, so no chain feels another. With
    `goal` a chain stops for good where it is reached, and is computed no further: every few steps the batch closes up.
    Noise is drawn for the whole batch in every step, so that a chain's does not depend on who stopped before.
    """
    device = starts.device
    with torch.no_grad():
        num_classes = model(starts[:1]).shape[1]
    images, steps = starts.clone(), torch.full((len(labels),), dynamics.steps, device=device)
    active = torch.arange(len(labels), device=device)
    target = torch.zeros(len(labels), dynamics.steps + 1, device=device, dtype=starts.dtype)
    other = torch.zeros_like(target)
    done = torch.zeros(len(labels), dtype=torch.bool, device=device)
    x, velocity = images.clone(), torch.zeros_like(images)
    for step in range(dynamics.steps + 1):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(x)
            energy = joint_energy(logits, labels[active])
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        energy, x = energy.detach(), x.detach()
        target[active, step] = energy
        other[active, step] = (-logits.detach().sum(1) - energy) / (num_classes - 1)
        if goal is not None:
            done = goal.reached(energy, labels[active]) | done
            steps[active] = torch.where(done, steps[active].clamp(max=step), steps[active])
        if step == dynamics.steps:
            break
        velocity = dynamics.inertia * velocity - 0.5 * dynamics.step_size * gradient
        shaken = torch.randn(images.shape, generator=generator, device=device)[active] * dynamics.noise
        moved = (x + velocity + shaken).clamp(0, 1)
        x = torch.where(done[:, None, None, None], x, moved)
        if goal is not None and step % _BETWEEN_LOOKS == _BETWEEN_LOOKS - 1:
            images[active] = x
            going = (~done).nonzero().squeeze(1)
            active, x, velocity, done = active[going], x[going], velocity[going], done[going]
            if not len(active):
                break
    images[active] = x
    target, other = (_held(energies, steps) for energies in (target, other))
    sums = torch.zeros(2, num_classes, dynamics.steps + 1, device=device, dtype=torch.float64)
    sums[0].index_add_(0, labels, target.double())
    sums[1].index_add_(0, labels, other.double())
    return Generated(images, steps, sums[0].T, sums[1].T, torch.bincount(labels, minlength=num_classes))


def _held(energies: Tensor, steps: Tensor) -> Tensor:
    """Energies [B, T] with those after a chain's last step replaced by the one there."""
    positions = torch.arange(energies.shape[1], device=energies.device)
    return energies.gather(1, torch.minimum(positions[None], steps[:, None]))


@torch.no_grad()
def class_energies(
    model: nn.Module, images: ImageSet, batch_size: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) [K] of E(x,y) in nats over training images of each class; NaN for an absent class.

    The images may lie elsewhere than the model, which is on `device`; a batch at a time goes there.
    """
    labels, parts = images.labels.to(device), []
    for start in range(0, len(labels), batch_size):
        logits = model(images.floats(start, start + batch_size).to(device))
        parts.append(joint_energy(logits, labels[start : start + batch_size]))
    energy = torch.cat(parts).double()
    counts = torch.bincount(labels, minlength=logits.shape[1]).double()
    mean = torch.zeros_like(counts).index_add_(0, labels, energy) / counts
    squares = torch.zeros_like(counts).index_add_(0, labels, (energy - mean[labels]).square())
    return mean.float(), (squares / counts).sqrt().float()
