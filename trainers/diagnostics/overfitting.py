"""Onset of catastrophic and robust overfitting: pure functions over the curves of a run.

The rules and their thresholds are this project's; the phenomena are those of arXiv 2505.22486 (ΔE jumps up at
catastrophic overfitting, with robust accuracy gone) and arXiv 2407.06315 (ΔE falls steeply at robust overfitting).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trainers.config import CatastrophicRule, Experiment, RobustRule
from trainers.records import EpochRecord

CLEAN_ACCURACY = "val/clean_accuracy"
ROBUST_ACCURACY = "val/pgd10_accuracy"
CHANCE_ACCURACY = "val/chance_accuracy"
DELTA_ENERGY = "probe/delta_energy/mean"
REFERENCE_DELTA_ENERGY = "probe_reference/delta_energy/mean"
CHECKED_ACCURACY = "check/{iteration:04d}/pgd5_accuracy"
CHECKED_DELTA_ENERGY = "check/{iteration:04d}/delta_energy/mean"
_OWN_ACCURACY = "probe/adversarial_accuracy"
_REFERENCE_ACCURACY = "probe_reference/pgd10_accuracy"
_A_CHECK = re.compile(r"check/(\d+)/pgd5_accuracy")
_READ = frozenset(
    {ROBUST_ACCURACY, CHANCE_ACCURACY, DELTA_ENERGY, REFERENCE_DELTA_ENERGY, _OWN_ACCURACY, _REFERENCE_ACCURACY}
)


@dataclass(frozen=True)
class Onset:
    """Where overfitting sets in. `confirmed`: a second sign (energy, or the training attack's accuracy) agrees.

    `iteration` counts the steps of that epoch, where checks inside it saw more than its end.
    """

    kind: str
    epoch: int
    confirmed: bool
    iteration: int | None = None


def catastrophic_onset(
    robust_accuracy: Sequence[float],
    delta_energy: Sequence[float],
    chance: float,
    rule: CatastrophicRule,
    *,
    single_step_gap: Sequence[float] | None = None,
) -> Onset | None:
    """First epoch whose robust accuracy is below half of its best so far, if that best was clearly above chance.

    `robust_accuracy` is held out, `delta_energy` the mean ΔE(x) on training images, one value an epoch; `chance` is
    the accuracy of always naming the most frequent class. `single_step_gap` is the accuracy under the training attack
    minus that under PGD, both on training images. The accuracy condition is mandatory: a jump of ΔE alone is no
    collapse but a warning (`energy_jumps`).
    """
    best = -math.inf
    for epoch, accuracy in enumerate(robust_accuracy):
        if best >= chance + rule.above_chance and accuracy < rule.accuracy_drop * best:
            jumped = epoch in energy_jumps(delta_energy[: epoch + 1], rule)
            gapped = single_step_gap is not None and single_step_gap[epoch] >= rule.accuracy_gap
            return Onset("catastrophic", epoch, bool(jumped or gapped))
        best = max(best, accuracy)
    return None


def energy_jumps(delta_energy: Sequence[float], rule: CatastrophicRule) -> list[int]:
    """Epochs whose ΔE(x) lies far above the median of those before, by a least rise and by their own deviations."""
    values, window = np.asarray(delta_energy, dtype=np.float64), rule.energy_window
    if len(values) < 2:
        return []
    before = sliding_window_view(np.r_[np.full(window - 1, np.nan), values[:-1]], window)
    medians = np.nanmedian(before, axis=1)
    deviations = 1.4826 * np.nanmedian(np.abs(before - medians[:, None]), axis=1)
    jumped = values[1:] - medians > np.maximum(rule.energy_jump, rule.energy_deviations * deviations)
    return [int(place) + 1 for place in np.flatnonzero(jumped)]


def checked_onsets(records: Sequence[EpochRecord], rule: CatastrophicRule) -> list[Onset]:
    """Every check inside an epoch whose accuracy fell by more than `check_drop` since the check before it.

    The online rule of FGSM-RS's published code (Wong et al. 2020, arXiv 2001.03994), which stops at the first. The
    check before may lie in the epoch before. Confirmed if ΔE(x) has risen by `energy_jump` from one to the other.
    Empty where nothing was checked.
    """
    checks = [
        (record.epoch, iteration, record.metrics[CHECKED_ACCURACY.format(iteration=iteration)],
         record.metrics[CHECKED_DELTA_ENERGY.format(iteration=iteration)])
        for record in records
        for iteration in sorted(int(found[1]) for found in map(_A_CHECK.fullmatch, record.metrics) if found)
    ]  # fmt: skip
    return [
        Onset("catastrophic", epoch, energy - energy_before > rule.energy_jump, iteration)
        for (_, _, before, energy_before), (epoch, iteration, after, energy) in itertools.pairwise(checks)
        if before - after > rule.check_drop
    ]


def robust_onset(
    delta_energy: Sequence[float], robust_error: Sequence[float], rule: RobustRule, *, epochs: int | None = None
) -> Onset | None:
    """First of `consecutive` epochs with a steeply falling ΔE(x) and a robust error above its running minimum.

    Both curves have one value an epoch: mean ΔE(x) on training images, and the held-out error under PGD. `epochs` is
    the planned length of a run that is still going on; the relative rule divides it into thirds.
    """
    values, planned = np.asarray(delta_energy, dtype=np.float64), epochs or len(delta_energy)
    begin = max(rule.first_epoch, rule.slope_window - 1, rule.error_first_epoch)
    if rule.relative_slope is not None:
        begin = max(begin, math.ceil(2 * planned / 3))
    if len(values) <= begin:
        return None
    slopes = _trailing_slopes(values, rule.slope_window)
    limit = rule.slope
    if rule.relative_slope is not None:
        middle = slopes[max(planned // 3, rule.slope_window - 1) : math.ceil(2 * planned / 3)]
        if len(middle) == 0:
            return None
        limit = min(limit, rule.relative_slope * float(np.median(middle)))
    error = _trailing_medians(np.asarray(robust_error, dtype=np.float64), rule.error_median)
    minimum = np.minimum.accumulate(error[rule.error_first_epoch :])
    rising = error[begin:] >= minimum[begin - rule.error_first_epoch :] + rule.error_rise
    held = 0
    for epoch, holds in enumerate((slopes[begin:] <= limit) & rising, begin):
        held = held + 1 if holds else 0
        if held == rule.consecutive:
            return Onset("robust", epoch - rule.consecutive + 1, True)
    return None


def _trailing_slopes(values: np.ndarray, window: int) -> np.ndarray:
    """Least-squares slope of the last `window` values at each place; NaN where there are not so many yet."""
    x = np.arange(window) - (window - 1) / 2
    slopes: np.ndarray = np.r_[np.full(window - 1, np.nan), sliding_window_view(values, window) @ x / (x @ x)]
    return slopes


def _trailing_medians(values: np.ndarray, window: int) -> np.ndarray:
    """Median of the last `window` values at each place, of fewer at the beginning."""
    padded = np.r_[np.full(window - 1, np.nan), values]
    medians: np.ndarray = np.nanmedian(sliding_window_view(padded, window), axis=1)
    return medians


def onsets(records: Sequence[EpochRecord], experiment: Experiment) -> list[Onset]:
    """Both detectors on the records of one run; at most one onset is reported, and none unless they `are_whole`.

    The thresholds are those of the experiment. Checks inside an epoch, where there are any, date a collapse within
    its epoch; that it is one is decided by the held-out accuracy, so that runs with and without checks compare.
    """
    if not are_whole(records):
        return []
    rules = experiment.evaluation
    accuracy, chance = _curve(records, ROBUST_ACCURACY), records[0].metrics[CHANCE_ACCURACY]
    own, pgd = _curve(records, _OWN_ACCURACY), _curve(records, _REFERENCE_ACCURACY)
    gap = [left - right for left, right in zip(own, pgd, strict=True)]
    # Under the method's own single step a collapsed net shows nothing: the jump of ΔE is seen under PGD.
    energy = _curve(records, REFERENCE_DELTA_ENERGY)
    collapse = catastrophic_onset(accuracy, energy, chance, rules.catastrophic, single_step_gap=gap)
    if collapse is not None:
        # What follows a collapse is its aftermath: falling energies there are no robust overfitting.
        checks = checked_onsets(records, rules.catastrophic)
        within = (check.iteration for check in checks if check.epoch == collapse.epoch)
        return [replace(collapse, iteration=next(within, None))]
    error = [1 - value for value in accuracy]
    late = robust_onset(_curve(records, DELTA_ENERGY), error, rules.robust, epochs=experiment.epochs)
    return [] if late is None else [late]


def are_whole(records: Sequence[EpochRecord]) -> bool:
    """Whether every epoch from 0 on is there, with what `onsets` reads: otherwise curves would not say which epoch."""
    return bool(records) and all(
        record.epoch == epoch and record.metrics.keys() >= _READ for epoch, record in enumerate(records)
    )


def is_read(metric: str) -> bool:
    """Whether `onsets` reads this metric: whoever keeps many records for it alone needs few of them."""
    return metric in _READ or metric.startswith("check/")


def jumps_without_collapse(records: Sequence[EpochRecord], experiment: Experiment) -> list[int]:
    """Epochs in which ΔE(x) under PGD jumped up although robust accuracy stood: no collapse, but a reason to look.

    None unless the records `are_whole`.
    """
    if not are_whole(records):
        return []
    collapse = next((onset.epoch for onset in onsets(records, experiment) if onset.kind == "catastrophic"), None)
    jumps = energy_jumps(_curve(records, REFERENCE_DELTA_ENERGY), experiment.evaluation.catastrophic)
    return [epoch for epoch in jumps if collapse is None or epoch < collapse]


def _curve(records: Sequence[EpochRecord], metric: str) -> list[float]:
    return [record.metrics[metric] for record in records]
