"""What the records of runs say, many runs in one figure: ΔE against robust error, and abnormal examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from orchestrator.lens.networks import Network
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.lettering import legend_outside
from orchestrator.pages.style import INK, MUTED, method_colors, new_figure, styled
from orchestrator.records.runs import Run
from orchestrator.report.curves import curve, overfitting, training_phases
from orchestrator.report.figures import ONSETS, delta_energy_axis, mark_onsets
from orchestrator.report.labels import epsilon_text
from trainers.diagnostics.overfitting import REFERENCE_DELTA_ENERGY, ROBUST_ACCURACY

_ABNORMAL_FRACTION = "probe/abnormal_fraction"
_ABNORMAL = {
    _ABNORMAL_FRACTION: ("abnormal\n[% of images]", 100.0),
    "probe/high_energy_abnormal_count/quantile": ("of high energy\n[images]", 1.0),
    "probe/abnormal_energy/mean": ("mean $E(x^*)$ of\nabnormal [nats]", 1.0),
}
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))


@styled
def energy_and_error(networks: Sequence[Network]) -> Figure | None:
    """ΔE(x) on training images above held-out robust error, epoch by epoch, with onsets and phases."""
    runs = _runs(networks, REFERENCE_DELTA_ENERGY)
    if not runs:
        return None
    figure = new_figure(4.9)
    top, bottom = figure.subplots(2, 1, sharex=True)
    looks = _looks(networks)
    for name, run in runs.items():
        look = looks[name]
        for axes, metric, convert in ((top, REFERENCE_DELTA_ENERGY, float), (bottom, ROBUST_ACCURACY, _error)):
            epochs, values = curve(run, metric)
            shown = [convert(value) for value in values]
            axes.plot(epochs, shown, **look)
            mark_onsets(axes, run, dict(zip(epochs, shown, strict=True)), look["color"])
        found = training_phases(run)
        for first in (found.first_break, found.second_break) if found else ():
            epochs, values = curve(run, REFERENCE_DELTA_ENERGY)
            top.plot(
                first + 1, values[epochs.index(first + 1)], linestyle="", marker="|", markersize=11,
                markeredgewidth=1.6, color=look["color"], zorder=3,
            )  # fmt: skip
    top.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    delta_energy_axis(top, [value for run in runs.values() for value in curve(run, REFERENCE_DELTA_ENERGY)[1]])
    top.set_ylabel(r"mean $\Delta E(x)$ [nats]" + "\ntraining images")
    bottom.set_ylabel("robust error [%]\nheld-out images")
    _epoch_axis(bottom)
    figure.align_ylabels([top, bottom])
    _legend(figure, runs, looks, marks=True)
    return figure


@styled
def abnormal_examples(networks: Sequence[Network]) -> Figure | None:
    """How many probe images training's attack makes easier, how many of them have a high energy, and which."""
    runs = _runs(networks, _ABNORMAL_FRACTION)
    if not runs:
        return None
    figure = new_figure(5.2)
    grid = figure.subplots(len(_ABNORMAL), 1, sharex=True)
    looks = _looks(networks)
    for axes, (metric, (heading, scale)) in zip(grid, _ABNORMAL.items(), strict=True):
        for name, run in runs.items():
            # An epoch without abnormal examples has no mean energy: a gap, not a line across it.
            values = dict(zip(*curve(run, metric), strict=True))
            shown = [scale * values.get(record.epoch + 1, math.nan) for record in run.records]
            axes.plot([record.epoch + 1 for record in run.records], shown, marker=".", **looks[name])
        axes.set_ylabel(heading)
    for axes in grid[:2]:
        axes.set_ylim(bottom=0)
    _epoch_axis(grid[-1])
    figure.align_ylabels(grid)
    _legend(figure, runs, looks, marks=False)
    return figure


def training_lines(networks: Sequence[Network]) -> list[CsvRow]:
    """One line per run and epoch; `phase` counts from 1 in runs that are long enough to have phases."""
    lines: list[CsvRow] = []
    for name, run in _runs(networks, REFERENCE_DELTA_ENERGY).items():
        onsets = {onset.epoch + 1: onset.kind for onset in overfitting(run)}
        found = training_phases(run)
        accuracies = dict(zip(*curve(run, ROBUST_ACCURACY), strict=True))
        for epoch, energy in zip(*curve(run, REFERENCE_DELTA_ENERGY), strict=True):
            breaks = (found.first_break, found.second_break) if found else ()
            lines.append(
                {
                    "network": name,
                    "training_epsilon": epsilon_text(run.experiment),
                    "epoch": epoch,
                    "delta_energy_mean": energy,
                    "robust_error": 1 - accuracies[epoch],
                    "onset": onsets.get(epoch, ""),
                    "phase": 1 + sum(epoch > first for first in breaks) if found else "",
                }
            )
    return lines


def abnormal_lines(networks: Sequence[Network]) -> list[CsvRow]:
    """One line per run and epoch; an energy is empty where no example was abnormal."""
    lines: list[CsvRow] = []
    for name, run in _runs(networks, _ABNORMAL_FRACTION).items():
        curves = {metric: dict(zip(*curve(run, metric), strict=True)) for metric in _ABNORMAL}
        lines += [
            {"network": name, "epoch": epoch} | {metric: values.get(epoch, "") for metric, values in curves.items()}
            for epoch in curves[_ABNORMAL_FRACTION]
        ]
    return lines


def _runs(networks: Sequence[Network], metric: str) -> dict[str, Run]:
    return {one.name: one.run for one in networks if one.run is not None and curve(one.run, metric)[0]}


def _looks(networks: Sequence[Network]) -> dict[str, dict[str, Any]]:
    """Name -> its color in all figures and, beyond the first seven networks and for those who see few colors, a dash.

    Networks without records have a look too: in figures of all networks each keeps its own.
    """
    colors = method_colors(network.name for network in networks)
    return {
        name: {"color": color, "linestyle": _DASHES[place % len(_DASHES)]}
        for place, (name, color) in enumerate(colors.items())
    }


def _error(accuracy: float) -> float:
    return 100 * (1 - accuracy)


def _epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _legend(figure: Figure, runs: dict[str, Run], looks: Mapping[str, Mapping[str, Any]], *, marks: bool) -> None:
    names = sorted(runs)
    handles = [Line2D([], [], **looks[name]) for name in names]
    explained = _marks(runs) if marks else []
    legend_outside(figure, [*handles, *explained], [*names, *(str(mark.get_label()) for mark in explained)], most=4)


def _marks(runs: dict[str, Run]) -> list[Line2D]:
    kinds = {onset.kind for run in runs.values() for onset in overfitting(run)}
    handles = [
        Line2D(
            [], [], linestyle="", marker=marker, markersize=7, markerfacecolor=MUTED, markeredgecolor=INK, label=text
        )
        for kind, (marker, text) in ONSETS.items()
        if kind in kinds
    ]
    if any(training_phases(run) for run in runs.values()):
        handles.append(Line2D([], [], linestyle="", marker="|", markersize=9, color=INK, label="phase begins"))
    return handles
