"""What the steps of one epoch add up to."""

from __future__ import annotations

import math
from dataclasses import fields

import torch

from trainers.ranks import Ranks
from trainers.records import EpochRecord
from trainers.step import StepResult

# Energies quoted in the error message: held out, at the images and at adversarial ones; records have all others.
_LAST_ENERGIES = ("val/natural_energy/mean", "val/adversarial_energy/mean")
_SUMMED = tuple(field.name for field in fields(StepResult))


class Diverged(RuntimeError):
    """The loss is not finite: the run can't go on."""


class EpochTotals:
    """Accumulates step results on the device; one synchronization and one reduction over ranks per epoch.

    `comparable`: the start of an attack and its end were seen by the same weights in the same batch-norm mode, so that
    it can be said which examples are abnormal.
    """

    def __init__(self, ranks: Ranks, batch_size: int, *, comparable: bool) -> None:
        self._comparable = comparable
        self._ranks = ranks
        self._batch_size = batch_size
        self._sums = torch.zeros(len(_SUMMED), dtype=torch.float64, device=ranks.device)
        self._bad_step = torch.full((), torch.iinfo(torch.long).max, dtype=torch.long, device=ranks.device)
        self._steps = 0

    def add(self, result: StepResult) -> None:
        """Add one step of this rank."""
        self._sums += torch.stack([getattr(result, name).double() for name in _SUMMED])
        fine = torch.isfinite(result.loss)
        self._bad_step = torch.where(fine, self._bad_step, self._bad_step.clamp(max=self._steps))
        self._steps += 1

    def metrics(self, epoch: int, before: EpochRecord | None) -> dict[str, float]:
        """The training metrics of an epoch (from 0) over all ranks. Raises Diverged if a loss was not finite.

        Its message counts epochs and steps from 1.
        """
        sums = dict(zip(_SUMMED, self._ranks.sum(self._sums).tolist(), strict=True))
        loss, abnormal_count = sums["loss"], sums["abnormal"]
        if not math.isfinite(loss):
            # One rank's loss is the others' one step later, through the gradients.
            bad_step = int(self._ranks.minimum(self._bad_step))
            measured = before.metrics if before else {}
            energies = ", ".join(f"{name} {measured[name]:.4g}" for name in _LAST_ENERGIES if name in measured)
            raise Diverged(
                f"the loss is not finite at epoch {epoch + 1}, step {bad_step + 1}; "
                f"energies in nats after the epoch before: {energies or 'none'}"
            )
        images = self._steps * self._batch_size
        reports = self._steps * self._ranks.world_size
        abnormality = {"train/abnormal_count": abnormal_count, "train/abnormal_fraction": abnormal_count / images}
        return {
            "train/loss": loss / reports,
            "train/regularizer": sums["regularizer"] / reports,
            "train/adversarial_accuracy": sums["adversarial_correct"] / images,
            "train/weight/mean": sums["weight_sum"] / images,
            "train/perturbation_norm/mean": sums["perturbation_norm"] / images,
            **(abnormality if self._comparable else {}),
        }
