"""Learning-rate schedules: the factor of the peak rate at a fraction `progress` in [0, 1) of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainers import catalog
from trainers.config import Choice


def triangular(progress: float, *, peak: float) -> float:
    """0 -> 1 -> 0, linearly (Wong et al. 2020, arXiv 2001.03994)."""
    return progress / peak if progress < peak else (1.0 - progress) / (1.0 - peak)


def onecycle(progress: float, *, peak: float) -> float:
    """Cosine 0.04 -> 1, then cosine 1 -> 4e-6: the schedule of WEAT (arXiv 2407.06315), lr 0.004 -> 0.1 -> 4e-7."""
    lowest = 0.04 if progress < peak else 4e-6
    return lowest + (1.0 - lowest) * cosine_height(progress, peak=peak)


def cosine_height(progress: float, *, peak: float) -> float:
    """0 -> 1 -> 0 along two half cosines."""
    return (1.0 - math.cos(math.pi * triangular(progress, peak=peak))) / 2


# How high the rate stands between its lowest and its peak, where that is no triangle.
_HEIGHTS = {"onecycle": cosine_height}


def piecewise(progress: float, *, milestones: Sequence[float], factor: float) -> float:
    """1, multiplied by `factor` at each milestone (Rice et al. 2020, arXiv 2002.11569: halves and three quarters)."""
    return float(factor ** sum(progress >= milestone for milestone in milestones))


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def learning_rates(schedule: Choice, peak_rate: float, steps: int) -> list[float]:
    """The rate of every step of a run, computed beforehand: step s of n lies at progress (s + 1) / (n + 1)."""
    factor = catalog.SCHEDULES[schedule.name].load()
    return [peak_rate * factor((step + 1) / (steps + 1), **schedule.parameters) for step in range(steps)]


def momenta(schedule: Choice, momentum: float, momentum_at_peak: float | None, steps: int) -> list[float]:
    """The momentum of every step: constant, or falling to `momentum_at_peak` while the rate rises, and back.

    PyTorch's OneCycleLR and CyclicLR do this by default, and so the runs of WEAT (0.95-0.85-0.95) and of Wong et al.
    (0.9-0.8-0.9). Between its ends it follows the rate of `onecycle`, else a triangle. Raises KeyError for a schedule
    without a peak.
    """
    if momentum_at_peak is None:
        return [momentum] * steps
    height, peak = _HEIGHTS.get(schedule.name, triangular), schedule.parameters["peak"]
    depth = momentum - momentum_at_peak
    return [momentum - depth * height((step + 1) / (steps + 1), peak=peak) for step in range(steps)]
