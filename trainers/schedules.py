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
    start, end = 0.04, 4e-6
    if progress < peak:
        return start + (1.0 - start) * (1.0 - math.cos(math.pi * progress / peak)) / 2
    falling = (progress - peak) / (1.0 - peak)
    return end + (1.0 - end) * (1.0 + math.cos(math.pi * falling)) / 2


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
