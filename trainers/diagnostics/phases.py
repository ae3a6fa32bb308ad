"""The three phases of adversarial training: where the slope of ΔE(x) changes (WEAT, arXiv 2407.06315).

The paper sees them at about epochs 10 and 78 of 100: a start, a long phase in which natural and adversarial energies
stay comparable, and a last one in which they drift apart. How to date them is this project's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Phases:
    """First epochs of the second and the third phase, and the slopes of all three in units per epoch."""

    first_break: int
    second_break: int
    slopes: tuple[float, float, float]


def phases(values: Sequence[float], *, min_length: int = 5) -> Phases | None:
    """The least-squares fit of three straight pieces that need not join, by exhaustive search over both breaks.

    `values` is one mean ΔE(x) an epoch; no piece is shorter than `min_length` (at least 2). None for a run that is
    too short for three such pieces.
    """
    count = len(values)
    if count < 3 * min_length:
        return None
    fit = _LineFits(np.asarray(values, dtype=np.float64))
    # Breaks (i, j): pieces [0, i), [i, j), [j, n). Pairs with a piece that is too short are left out.
    first, second = np.triu_indices(count + 1, k=min_length)
    allowed = (first >= min_length) & (second <= count - min_length)
    first, second = first[allowed], second[allowed]
    error = fit.error(0, first) + fit.error(first, second) + fit.error(second, count)
    best = int(np.argmin(error))
    i, j = int(first[best]), int(second[best])
    return Phases(i, j, (fit.slope(0, i), fit.slope(i, j), fit.slope(j, count)))


class _LineFits:
    """Least-squares lines through any piece [start, stop) of a curve, from prefix sums: constant work a piece."""

    def __init__(self, values: np.ndarray) -> None:
        x = np.arange(len(values)) - (len(values) - 1) / 2  # centered: the sums of squares do not cancel
        y = values - values.mean()
        self._sums = [np.r_[0.0, np.cumsum(part)] for part in (x, y, x * x, x * y, y * y)]

    def _moments(self, start: int | np.ndarray, stop: int | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y, xx, xy, yy = (np.asarray(sums[stop] - sums[start]) for sums in self._sums)
        length = np.asarray(stop) - np.asarray(start)
        return xx - x * x / length, xy - x * y / length, yy - y * y / length

    def slope(self, start: int, stop: int) -> float:
        """Slope of one piece."""
        xx, xy, _ = self._moments(start, stop)
        return float(xy / xx)

    def error(self, start: int | np.ndarray, stop: int | np.ndarray) -> np.ndarray:
        """Sum of squared residuals of each piece."""
        xx, xy, yy = self._moments(start, stop)
        residuals: np.ndarray = yy - xy * xy / xx
        return residuals
