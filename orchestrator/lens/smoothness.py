"""How much an attack changes the energies, over networks from the least to the most robust (WEAT, fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from orchestrator.lens.seen import Seen, main_stage
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.lettering import lettered
from orchestrator.pages.style import INK, MUTED, NATURAL_COLOR, new_figure, styled
from trainers.lens.points import Array
from trainers.lens.statistics import SMALL_CHANGE, smoothness, spearman

_BINS = 90
_NAME_CHARACTERS = 11
_NAMES = ("delta_energy", "delta_joint_energy")
_LABELS = (r"$\Delta E(x)$ [nats]", r"$\Delta E(x, y)$ [nats]")
_MEASURES = ("absolute_mean", "std", "small_share")


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman over networks between robust accuracy and one number of ΔE, such as `delta_energy_std`."""

    quantity: str
    networks: int
    spearman: float


@styled
def delta_energy_distributions(seen: Sequence[Seen]) -> Figure:
    """A shape a network with median and quartiles, on a symmetric logarithm that is linear below 0.1."""
    stage = main_stage(seen)
    ordered = by_robustness(seen, stage)
    figure = new_figure(4.4, max(3.6, 1.3 + 0.75 * len(ordered)))
    for row, (axes, heading) in enumerate(zip(figure.subplots(2, 1, sharex=True), _LABELS, strict=True)):
        samples = [one.deltas(stage)[row] for one in ordered]
        for place, values in enumerate(samples):
            _shape(axes, place, values)
        _symmetric_logarithm(axes, samples)
        axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        axes.set_ylabel(heading)
        axes.grid(axis="x", visible=False)
    labels = [f"{lettered(one.name, _NAME_CHARACTERS)}\n{100 * one.robust_accuracy(stage):.1f} %" for one in ordered]
    axes.set_xticks(range(len(ordered)), labels)
    axes.set_xlabel("network and its robust accuracy")
    return figure


def smoothness_lines(seen: Sequence[Seen]) -> list[CsvRow]:
    """One line a network, the least robust first: its accuracies and the numbers of both ΔE."""
    stage = main_stage(seen)
    return [
        {"network": one.name, "attack": stage, "clean_accuracy": float(one.natural.correct.mean()),
         "robust_accuracy": one.robust_accuracy(stage)}
        | {
            f"{name}_{measure}": value
            for name, values in zip(_NAMES, one.deltas(stage), strict=True)
            for measure, value in asdict(smoothness(values)).items()
        }
        for one in by_robustness(seen, stage)
    ]  # fmt: skip


def rank_correlations(seen: Sequence[Seen]) -> list[RankCorrelation]:
    """One for each number of ΔE(x), then of ΔE(x,y); none with fewer than three networks."""
    if len(seen) < 3:
        return []
    stage = main_stage(seen)
    accuracies = [one.robust_accuracy(stage) for one in seen]
    numbers = {name: [smoothness(one.deltas(stage)[place]) for one in seen] for place, name in enumerate(_NAMES)}
    return [
        RankCorrelation(f"{name}_{measure}", len(seen), spearman(accuracies, [getattr(one, measure) for one in of]))
        for name, of in numbers.items()
        for measure in _MEASURES
    ]


def by_robustness(seen: Sequence[Seen], stage: str) -> list[Seen]:
    """The least robust first."""
    return sorted(seen, key=lambda one: one.robust_accuracy(stage))


def _shape(axes: Axes, place: int, values: Array) -> None:
    """A histogram of even bins on the symmetric logarithm, mirrored: the density as the eye sees it."""
    bent = _bend(values)
    low, high = np.quantile(bent, (0.005, 0.995))
    edges = np.linspace(low, max(high, low + 1e-3), _BINS + 1)
    counts, _ = np.histogram(bent, edges)
    smooth = np.convolve(counts, np.hanning(9)[1:-1], "same")
    half = 0.42 * smooth / max(smooth.max(), 1e-12)
    heights = _unbend((edges[1:] + edges[:-1]) / 2)
    axes.fill_betweenx(heights, place - half, place + half, color=NATURAL_COLOR, alpha=0.5, linewidth=0)
    lower, middle, upper = np.quantile(values, (0.25, 0.5, 0.75))
    axes.plot([place, place], [lower, upper], color=INK, linewidth=2.2, solid_capstyle="butt")
    axes.plot([place - 0.12, place + 0.12], [middle, middle], color=INK, linewidth=1.4)


def _symmetric_logarithm(axes: Axes, samples: Sequence[Array]) -> None:
    everything = np.concatenate(samples)
    low, high = np.quantile(np.append(everything, 0.0), (0.003, 0.997))
    low, high = min(low, -SMALL_CHANGE / 2), max(high, SMALL_CHANGE / 2)
    axes.set_yscale("function", functions=(_bend, _unbend))
    axes.set_ylim(float(_unbend(_bend(low) - 0.3)), float(_unbend(_bend(high) + 0.3)))
    sizes = [0.1, *(10.0**power for power in range(6))]
    ticks = [-size for size in reversed(sizes)] + [0.0, *sizes]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _bend(values: Array | float) -> Array:
    """asinh: linear within ±`SMALL_CHANGE`, logarithmic far outside."""
    result: Array = np.arcsinh(np.asarray(values) / SMALL_CHANGE)
    return result


def _unbend(values: Array | float) -> Array:
    result: Array = SMALL_CHANGE * np.sinh(np.asarray(values))
    return result
