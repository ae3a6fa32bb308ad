"""What is kept of an image and of its adversarial twin: a few numbers each, never the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.answers import is_correct, margin
from trainers.energy import joint_energy, marginal_energy
from trainers.whole_files import write_with

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Points:
    """One net's answers to N images under one attack, or to the images themselves. Arrays [N]; energies in nats.

    `margin` is p_y − max_{k≠y} p_k in [-1,1], negative where the answer is wrong; `entropy` is that of p in nats.
    `correct` is the answer at this point alone; an answer that is not finite is not correct. `moved` is false where the
    attack left the image as it was. `step_energy` and `step_joint_energy` [N, T] are the energies at each iterate of
    PGD, from its random start to its end; T is 0 for everything else.
    """

    labels: Array
    energy: Array
    joint_energy: Array
    entropy: Array
    true_probability: Array
    margin: Array
    correct: Array
    moved: Array
    step_energy: Array
    step_joint_energy: Array

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, file: Path) -> None:
        """Write as `.npz`."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        write_with(file, lambda opened: np.savez(opened, **content))

    @classmethod
    def load(cls, file: Path) -> Points:
        """Inverse of `save`."""
        with np.load(file, allow_pickle=False) as content:
            return cls(**{field.name: content[field.name] for field in fields(cls)})

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """Ranges that follow one another as one."""
        return cls(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        )


def points(logits: Tensor, labels: Tensor, *, moved: Tensor | None = None, steps: Sequence[Tensor] = ()) -> Points:
    """Logits [N, K] of a whole range as numbers; `steps` are the logits [N, K] at each iterate of an attack."""
    logits = logits.double()
    log_probabilities = logits.log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    true = probabilities.gather(1, labels[:, None]).squeeze(1)
    correct = is_correct(logits, labels)
    nothing = logits.new_zeros((len(labels), 0))
    return Points(
        labels=labels.cpu().numpy(),
        energy=_numbers(marginal_energy(logits)),
        joint_energy=_numbers(joint_energy(logits, labels)),
        entropy=_numbers(-(probabilities * log_probabilities).nan_to_num(0.0).sum(dim=1)),
        true_probability=_numbers(true),
        margin=_numbers(margin(probabilities, labels)),
        correct=correct.cpu().numpy(),
        moved=(torch.ones_like(correct) if moved is None else moved).cpu().numpy(),
        step_energy=_numbers(torch.stack([marginal_energy(z.double()) for z in steps], dim=1) if steps else nothing),
        step_joint_energy=_numbers(
            torch.stack([joint_energy(z.double(), labels) for z in steps], dim=1) if steps else nothing
        ),
    )


def standing(natural: Points, adversarial: Points) -> Array:
    """Which images are classified correctly both before and after the attack [N]: their share is robust accuracy."""
    result: Array = natural.correct & adversarial.correct
    return result


def point_delta_energies(natural: Points, adversarial: Points) -> tuple[Array, Array]:
    """(ΔE(x), ΔE(x,y)) [N] each in float64, natural minus adversarial."""
    marginal = natural.energy.astype(np.float64) - adversarial.energy
    return marginal, natural.joint_energy.astype(np.float64) - adversarial.joint_energy


def _numbers(values: Tensor) -> Array:
    """Kept in float32: files of 10,000 images stay small, and logits are not more exact."""
    return values.float().cpu().numpy()
