"""Onset of catastrophic and robust overfitting: pure functions over the curves of a run.

The rules and their thresholds are this project's; the phenomena are those of arXiv 2505.22486 (ΔE jumps up at
catastrophic overfitting, with robust accuracy gone) and arXiv 2407.06315 (ΔE falls steeply at robust overfitting).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.records import EpochRecord

CLEAN_ACCURACY = "val/clean_accuracy"
ROBUST_ACCURACY = "val/pgd10_accuracy"
DELTA_ENERGY = "probe/delta_energy/mean"
REFERENCE_DELTA_ENERGY = "probe_reference/delta_energy/mean"
_OWN_ACCURACY = "probe/adversarial_accuracy"
_REFERENCE_ACCURACY = "probe_reference/pgd10_accuracy"


@dataclass(frozen=True)
class Onset:
    """Where overfitting sets in. `confirmed`: a second sign (energy, or the training attack's accuracy) agrees."""

    kind: str
    epoch: int
    confirmed: bool


@dataclass(frozen=True)
class CatastrophicRule:
    """Thresholds for catastrophic overfitting. Accuracies are fractions, energies in nats."""

    accuracy_drop: float = 0.5
    above_chance: float = 0.10
    energy_jump: float = 0.5
    energy_deviations: float = 5.0
    energy_window: int = 5
    accuracy_gap: float = 0.30


@dataclass(frozen=True)
class RobustRule:
    """Thresholds for robust overfitting; the slope is per epoch, in the logit units of a 10-class ResNet-18."""

    first_epoch: int = 20
    slope: float = -0.004
    slope_window: int = 10
    error_rise: float = 0.005
    error_median: int = 5
    error_first_epoch: int = 10
    consecutive: int = 3


def catastrophic_onset(
    robust_accuracy: Sequence[float],
    delta_energy: Sequence[float],
    chance: float,
    *,
    single_step_gap: Sequence[float] | None = None,
    rule: CatastrophicRule = CatastrophicRule(),
) -> Onset | None:
    """First epoch whose robust accuracy is below half of its best so far, if that best was clearly above chance.

    `robust_accuracy` is held out, `delta_energy` the mean ΔE(x) on training images, one value an epoch;
    `single_step_gap` is the accuracy under the training attack minus that under PGD, both on training images. The
    accuracy condition is mandatory: a jump of ΔE alone is no collapse.
    """
    best = -np.inf
    for epoch, accuracy in enumerate(robust_accuracy):
        if best >= chance + rule.above_chance and accuracy < rule.accuracy_drop * best:
            jumped = _energy_jumped(delta_energy, epoch, rule)
            gapped = single_step_gap is not None and single_step_gap[epoch] >= rule.accuracy_gap
            return Onset("catastrophic", epoch, bool(jumped or gapped))
        best = max(best, accuracy)
    return None


def _energy_jumped(delta_energy: Sequence[float], epoch: int, rule: CatastrophicRule) -> bool:
    before = np.asarray(delta_energy[max(0, epoch - rule.energy_window) : epoch])
    median = np.median(before)
    deviation = 1.4826 * np.median(np.abs(before - median))
    return bool(delta_energy[epoch] - median > max(rule.energy_jump, rule.energy_deviations * deviation))


def robust_onset(
    delta_energy: Sequence[float],
    robust_error: Sequence[float],
    *,
    rule: RobustRule = RobustRule(),
) -> Onset | None:
    """First of `consecutive` epochs with a steeply falling ΔE(x) and a robust error above its running minimum."""
    held = 0
    smooth = [
        float(np.median(robust_error[max(0, e - rule.error_median + 1) : e + 1])) for e in range(len(robust_error))
    ]
    for epoch in range(rule.first_epoch, len(delta_energy)):
        window = np.asarray(delta_energy[epoch - rule.slope_window + 1 : epoch + 1])
        slope = np.polyfit(np.arange(len(window)), window, 1)[0]
        minimum = min(smooth[rule.error_first_epoch : epoch + 1])
        rising = smooth[epoch] >= minimum + rule.error_rise
        held = held + 1 if slope <= rule.slope and rising else 0
        if held == rule.consecutive:
            return Onset("robust", epoch - rule.consecutive + 1, True)
    return None


def onsets(records: Sequence[EpochRecord], chance: float) -> list[Onset]:
    """Both detectors on the records of one run (epochs from 0 on, none missing); at most one onset is reported."""
    if not records:
        return []
    curve = {
        name: [record.metrics[name] for record in records]
        for name in (ROBUST_ACCURACY, DELTA_ENERGY, REFERENCE_DELTA_ENERGY, _OWN_ACCURACY, _REFERENCE_ACCURACY)
    }
    gap = [own - pgd for own, pgd in zip(curve[_OWN_ACCURACY], curve[_REFERENCE_ACCURACY], strict=True)]
    error = [1 - accuracy for accuracy in curve[ROBUST_ACCURACY]]
    # Under the method's own single step a collapsed net shows nothing: the jump of ΔE is seen under PGD.
    collapse = catastrophic_onset(curve[ROBUST_ACCURACY], curve[REFERENCE_DELTA_ENERGY], chance, single_step_gap=gap)
    if collapse is not None:
        # What follows a collapse is its aftermath: falling energies there are no robust overfitting.
        return [collapse]
    late = robust_onset(curve[DELTA_ENERGY], error)
    return [] if late is None else [late]
