"""Distributions of E(x) and E(x,y) before and after each attack (WEAT, arXiv 2407.06315, fig. 2)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from orchestrator.lens.seen import Seen, label
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.style import ADVERSARIAL_COLOR, INK, NATURAL_COLOR, new_figure, styled
from trainers.lens.points import Array, Points
from trainers.lens.statistics import smoothness

_MOST_BINS = 50
_COLUMNS = (("energy", r"$E(x)$"), ("joint_energy", r"$E(x, y)$"))


@styled
def energy_distributions(seen: Seen) -> Figure:
    """One row an attack, E(x) left and E(x,y) right: natural filled, adversarial as an outline."""
    rows = len(seen.attacked)
    figure = new_figure(0.75 + 0.72 * rows, 6.2)
    grid = figure.subplots(rows, 2, sharex="col", squeeze=False)
    for column, (quantity, heading) in enumerate(_COLUMNS):
        natural = getattr(seen.natural, quantity)
        shown = {stage: getattr(points, quantity)[points.moved] for stage, points in seen.attacked.items()}
        edges = _edges([natural, *shown.values()])
        for axes, (stage, values) in zip(grid[:, column], shown.items(), strict=True):
            axes.hist(
                _inside(natural, edges), edges, density=True, color=NATURAL_COLOR, alpha=0.45, label="natural image"
            )
            if len(values):
                axes.hist(
                    _inside(values, edges), edges, density=True, histtype="step", color=ADVERSARIAL_COLOR,
                    linewidth=1.3, label="adversarial image",
                )  # fmt: skip
            axes.set_yticks([])
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
            if column == 0:
                text = f"{label(stage)}\n{_note(seen, stage)}"
                axes.set_ylabel(text, rotation=0, ha="right", va="center", color=INK, fontsize=8)
        grid[-1, column].set_xlabel(f"{heading} [nats]")
    handles, names = max((axes.get_legend_handles_labels() for axes in grid.ravel()), key=lambda pair: len(pair[0]))
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    return figure


def distribution_lines(seen: Seen) -> list[CsvRow]:
    """Per attack, and for the natural images: accuracy, moments and quartiles of both energies and of their ΔE."""
    lines: list[CsvRow] = [{"network": seen.name, "attack": "clean"} | _moments(seen.natural)]
    lines[0]["robust_accuracy"] = float(seen.natural.correct.mean())
    for stage, points in seen.attacked.items():
        marginal, joint = map(smoothness, seen.deltas(stage))
        lines.append(
            {
                "network": seen.name,
                "attack": stage,
                **_moments(points),
                "robust_accuracy": seen.robust_accuracy(stage),
                "moved": float(points.moved.mean()),
                "delta_energy_mean": marginal.mean,
                "delta_energy_std": marginal.std,
                "delta_joint_energy_mean": joint.mean,
                "delta_joint_energy_std": joint.std,
            }
        )
    return lines


def _moments(points: Points) -> CsvRow:
    line: CsvRow = {"images": len(points)}
    for quantity, _ in _COLUMNS:
        values = getattr(points, quantity).astype(np.float64)
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        line |= {f"{quantity}_mean": float(values.mean()), f"{quantity}_std": float(values.std())}
        line |= {f"{quantity}_q25": low, f"{quantity}_q50": middle, f"{quantity}_q75": high}
    return line


def _note(seen: Seen, stage: str) -> str:
    robust = f"robust {100 * seen.robust_accuracy(stage):.1f} %"
    moved = seen.attacked[stage].moved.mean()
    return robust if moved == 1 else f"{robust}\nx* ≠ x for {100 * moved:.0f} %"


def _edges(samples: list[Array]) -> Array:
    """Bins over all samples together, without the outermost thousandth, which would squeeze the rest."""
    everything = np.concatenate(samples).astype(np.float64)
    low, high = np.quantile(everything[np.isfinite(everything)], (0.001, 0.999))
    bins = min(_MOST_BINS, 8 + int(len(samples[0]) ** 0.5))
    result: Array = np.linspace(low, max(high, low + 1e-3), bins + 1)
    return result


def _inside(values: Array, edges: Array) -> Array:
    result: Array = np.clip(values, edges[0], edges[-1])
    return result
