"""Numbers that sum points up: correlations, how smooth the energies are, and one row a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from trainers.lens.points import Array, Points, standing

SMALL_CHANGE = 0.1


def pearson(left: Sequence[float] | Array, right: Sequence[float] | Array) -> float:
    """Pearson's correlation; NaN where one side is constant or there are fewer than two pairs."""
    return float(stats.pearsonr(left, right).statistic) if _vary(left, right) else math.nan


def spearman(left: Sequence[float] | Array, right: Sequence[float] | Array) -> float:
    """Spearman's rank correlation; NaN where one side is constant or there are fewer than two pairs."""
    return float(stats.spearmanr(left, right).statistic) if _vary(left, right) else math.nan


def _vary(*sides: Sequence[float] | Array) -> bool:
    return all(len(side) > 1 and np.ptp(np.asarray(side, dtype=np.float64)) > 0 for side in sides)


@dataclass(frozen=True)
class Smoothness:
    """How far and how unevenly an attack moves an energy: mean, its size, deviation, share of |ΔE| < 0.1 nats."""

    mean: float
    absolute_mean: float
    std: float
    small_share: float


def smoothness(delta_energy: Array) -> Smoothness:
    """Of ΔE [N]. Robust nets have a ΔE(x) that is close to 0 and narrow (WEAT, arXiv 2407.06315)."""
    values = delta_energy.astype(np.float64)
    mean = float(values.mean())
    return Smoothness(mean, abs(mean), float(values.std()), float((np.abs(values) < SMALL_CHANGE).mean()))


@dataclass(frozen=True)
class ClassRow:
    """One class: how many images, mean energies and entropy (nats) of the images, and three errors (fractions).

    `probabilistic_error` is the mean of 1 − p_y, `error` counts wrong answers, `robust_error` those to the image or to
    any of its attacked versions.
    """

    label: int
    count: int
    energy: float
    joint_energy: float
    entropy: float
    probabilistic_error: float
    error: float
    robust_error: float


CLASS_COLUMNS = ("energy", "joint_energy", "entropy", "probabilistic_error", "error", "robust_error")


def class_rows(natural: Points, attacked: Sequence[Points]) -> list[ClassRow]:
    """A row for each class that occurs. Robust error is the worst case over all of `attacked`."""
    robust = natural.correct.copy()
    for adversarial in attacked:
        robust &= standing(natural, adversarial)
    rows = []
    for label in np.unique(natural.labels):
        of = natural.labels == label
        rows.append(
            ClassRow(
                label=int(label),
                count=int(of.sum()),
                energy=_mean(natural.energy[of]),
                joint_energy=_mean(natural.joint_energy[of]),
                entropy=_mean(natural.entropy[of]),
                probabilistic_error=1.0 - _mean(natural.true_probability[of]),
                error=1.0 - _mean(natural.correct[of]),
                robust_error=1.0 - _mean(robust[of]),
            )
        )
    return rows


def class_correlations(rows: Sequence[ClassRow]) -> dict[tuple[str, str], float]:
    """Spearman's correlation over classes of each pair of columns. High energy goes with high error (WEAT, fig. 5)."""
    columns = {name: [asdict(row)[name] for row in rows] for name in CLASS_COLUMNS}
    return {
        (one, other): spearman(columns[one], columns[other])
        for place, one in enumerate(CLASS_COLUMNS)
        for other in CLASS_COLUMNS[place + 1 :]
    }


def _mean(values: Array) -> float:
    return float(values.astype(np.float64).mean())
