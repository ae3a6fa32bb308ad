"""The figures of a study: pure functions of its runs. Each returns None where there is nothing to draw yet.

Accuracies are drawn in percent, energies in nats; epochs count from 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator

from orchestrator.pages.lettering import legend_outside
from orchestrator.pages.style import (
    ADVERSARIAL_COLOR,
    INK,
    MUTED,
    NATURAL_COLOR,
    WIDTH,
    epsilon_strokes,
    label_points,
    method_colors,
    method_lines,
    method_markers,
    new_figure,
    styled,
)
from orchestrator.records.runs import Run
from orchestrator.records.trials import trials
from orchestrator.report.curves import curve, overfitting, training_phases
from orchestrator.report.held_out import HeldOutPoint
from orchestrator.report.importance import Importances
from orchestrator.report.labels import epsilon_text, evaluation_epsilon, method_label, short_names
from search_spaces.study import Study
from trainers.diagnostics.overfitting import CLEAN_ACCURACY, REFERENCE_DELTA_ENERGY, ROBUST_ACCURACY

MANY_TRIALS = 12
_MAX_COLUMNS = 4
_WIDE = 6.6
_LINEAR_BELOW = 1.0
_MOST_DECADES = 7
_DELTA_ENERGY_LABEL = r"mean $\Delta E(x)$ [nats]"
ONSETS = {"catastrophic": ("X", "catastrophic overfitting"), "robust": ("D", "robust overfitting")}
_OBJECTIVE_NAMES = {CLEAN_ACCURACY: "clean accuracy", ROBUST_ACCURACY: "robust accuracy (PGD-10)"}


@styled
def energy_curves(study: Study, runs: Sequence[Run]) -> Figure | None:
    """Mean ΔE(x) of fixed training images under PGD-10 at the training ε, above held-out robust accuracy.

    One line a trial, of its first seed. Many trials of few methods get one column a method.
    """
    shown = [trial.first for trial in trials(runs) if curve(trial.first, REFERENCE_DELTA_ENERGY)[0]]
    if not shown:
        return None
    labels = sorted({method_label(run.experiment) for run in shown})
    looks = method_lines(_methods(runs))
    many = len(shown) > MANY_TRIALS
    columns = labels if many and len(labels) <= _MAX_COLUMNS else [None]
    figure = new_figure(4.9, _WIDE if len(columns) > 2 else WIDTH)
    grid = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    for column, label in enumerate(columns):
        top, bottom = grid[0, column], grid[1, column]
        group = [run for run in shown if label in (None, method_label(run.experiment))]
        _energy_column(top, bottom, group, shown, looks, thin=many)
        top.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        bottom.set_xlabel("epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if label is not None:
            top.set_title(label, color=looks[label]["color"], fontweight="bold")
    delta_energy_axis(grid[0, 0], [value for run in shown for value in curve(run, REFERENCE_DELTA_ENERGY)[1]])
    grid[0, 0].set_ylabel(_DELTA_ENERGY_LABEL + "\ntraining images, PGD-10")
    grid[1, 0].set_ylim(bottom=0)
    grid[1, 0].set_ylabel(f"robust accuracy [%]\nheld out, PGD-10, ε = {evaluation_epsilon(shown)}")
    figure.align_ylabels(grid[:, 0])
    handles = _curve_legend(shown, {label: looks[label] for label in labels} if columns == [None] else {})
    _legend(figure, handles, most=3 if len(columns) <= 2 else 4)
    return figure


@styled
def pareto_front(runs: Sequence[Run], points: Sequence[HeldOutPoint]) -> Figure | None:
    """Held-out clean against robust accuracy of the trials that count; a step line joins those on the front."""
    if not points:
        return None
    figure = new_figure(3.6)
    axes = figure.subplots()
    front = sorted({(100 * point.clean, 100 * point.robust) for point in points if point.on_front})
    clean, robust = [100 * point.clean for point in points], [100 * point.robust for point in points]
    looks = _point_looks(runs)
    _scatter(axes, points, looks, clean, robust)
    axes.margins(0.08)
    if front:
        # The line goes on to both edges: everything below and left of it is dominated.
        left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
        steps = [(left, front[0][1]), *front, (front[-1][0], bottom)]
        axes.plot(*zip(*steps, strict=True), drawstyle="steps-pre", color=MUTED, linewidth=1, zorder=1)
        axes.set_xlim(left=left)
        axes.set_ylim(bottom=bottom)
    label_points(
        figure,
        axes,
        [(x, y, str(point.trial), point.on_front) for point, x, y in zip(points, clean, robust, strict=True)],
    )
    axes.set_xlabel("clean accuracy, held out [%]")
    axes.set_ylabel(f"robust accuracy [%]\nheld out, PGD-10, ε = {evaluation_epsilon(runs)}")
    handles = _method_legend(points, looks)
    if front:
        handles.append(Line2D([], [], color=MUTED, linewidth=1, label="Pareto front"))
    _legend(figure, handles, most=3)
    return figure


@styled
def accuracy_over_epsilon(study: Study, runs: Sequence[Run], points: Sequence[HeldOutPoint]) -> Figure | None:
    """Held-out robust accuracy at the checkpoint that counts over the training ε: a point a trial, lines join means."""
    values = sorted({point.epsilon_value for point in points})
    if len(values) < 2:
        return None
    figure = new_figure(3.4)
    axes = figure.subplots()
    looks = _point_looks(runs)
    _scatter(axes, points, looks, [point.epsilon_value for point in points], [100 * point.robust for point in points])
    for label in sorted({point.method for point in points}):
        means = mean_over_epsilon(point for point in points if point.method == label)
        axes.plot(list(means), [100 * mean for mean in means.values()], color=looks[label][0], linewidth=1.2, zorder=1)
    texts = {point.epsilon_value: point.epsilon for point in points}
    if len(values) <= 8:
        axes.set_xticks(values, [texts[value] for value in values])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training ε (pixels in [0, 1])")
    axes.set_ylabel(
        f"robust accuracy [%], {study.search.checkpoint} epoch\nheld out, PGD-10, ε = {evaluation_epsilon(runs)}"
    )
    handles = _method_legend(points, looks)
    _legend(figure, handles, most=3)
    return figure


@styled
def parameter_importance(importances: Importances) -> Figure | None:
    """PED-ANOVA shares, one group of bars a parameter and one bar an objective."""
    if not importances:
        return None
    names = list(next(iter(importances.values())))
    short = short_names(names)
    figure = new_figure(0.9 + 0.42 * len(names))
    axes = figure.subplots()
    thickness = 0.7 / len(importances)
    for place, (objective, shares) in enumerate(importances.items()):
        offset = (place - (len(importances) - 1) / 2) * thickness
        axes.barh(
            [row + offset for row in range(len(names))], [100 * shares[name] for name in names], height=0.9 * thickness,
            color=ADVERSARIAL_COLOR if objective == ROBUST_ACCURACY else NATURAL_COLOR,
            label=_OBJECTIVE_NAMES[objective],
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [short[name] for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 100)
    axes.set_xlabel("importance, PED-ANOVA [%]")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def run_energies(run: Run) -> Figure | None:
    """One run on held-out images at the evaluation ε: its four mean energies, below them ΔE(x) with its quartiles.

    Lines across mark onsets and, in a long run, the phases of training ΔE(x).
    """
    if not curve(run, "val/delta_energy/mean")[0]:
        return None
    figure = new_figure(4.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    energies = {
        "natural_energy": (r"$E(x)$", NATURAL_COLOR, "-"),
        "adversarial_energy": (r"$E(x^*)$", ADVERSARIAL_COLOR, "-"),
        "natural_joint_energy": (r"$E(x, y)$", NATURAL_COLOR, (0, (4, 1.5))),
        "adversarial_joint_energy": (r"$E(x^*, y)$", ADVERSARIAL_COLOR, (0, (4, 1.5))),
    }
    for quantity, (label, color, style) in energies.items():
        top.plot(*curve(run, f"val/{quantity}/mean"), label=label, color=color, linestyle=style)
    top.set_ylabel("mean energy [nats]")
    lower, upper = curve(run, "val/delta_energy/q25"), curve(run, "val/delta_energy/q75")
    if lower[0] == upper[0]:
        bottom.fill_between(lower[0], lower[1], upper[1], color=INK, alpha=0.15, linewidth=0, label="q25 to q75")
    means = curve(run, "val/delta_energy/mean")
    bottom.plot(*means, color=INK, label=r"mean $\Delta E(x)$")
    bottom.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    delta_energy_axis(bottom, [*means[1], *lower[1], *upper[1]])
    bottom.set_ylabel(r"$\Delta E(x)$ [nats]")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    for axes in (top, bottom):
        for onset in overfitting(run):
            axes.axvline(onset.epoch + 1, color=MUTED, linestyle=(0, (1, 1.5)), linewidth=1)
            if axes is bottom:
                axes.annotate(
                    ONSETS[onset.kind][1], (onset.epoch + 1, 1), (4, -2), xycoords=("data", "axes fraction"),
                    textcoords="offset points", va="top", fontsize=7.5, color=MUTED,
                )  # fmt: skip
    found = training_phases(run)
    for number, first in ((2, found.first_break), (3, found.second_break)) if found else ():
        for axes in (top, bottom):
            axes.axvline(first + 1, color=MUTED, linewidth=0.6, zorder=1)
        bottom.annotate(
            f"phase {number}", (first + 1, 0), (4, 3), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=7.5, color=MUTED,
        )  # fmt: skip
    figure.align_ylabels([top, bottom])
    top.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    bottom.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    top.set_title(
        f"{method_label(run.experiment)}, training ε = {epsilon_text(run.experiment)}; held-out images, "
        f"PGD-10, ε = {evaluation_epsilon([run])}",
        loc="left",
    )
    return figure


def mean_over_epsilon(points: Iterable[HeldOutPoint]) -> dict[float, float]:
    """Training ε -> mean robust accuracy of its trials, by rising ε."""
    groups: dict[float, list[float]] = {}
    for point in points:
        groups.setdefault(point.epsilon_value, []).append(point.robust)
    return {epsilon: math.fsum(groups[epsilon]) / len(groups[epsilon]) for epsilon in sorted(groups)}


def _methods(runs: Sequence[Run]) -> list[str]:
    """Of all trials, whatever a figure shows of them: a method keeps its color in all figures of a report."""
    return sorted({method_label(trial.experiment) for trial in trials(runs)})


def _energy_column(
    top: Axes, bottom: Axes, group: Sequence[Run], shown: Sequence[Run], looks: Mapping[str, Mapping[str, Any]],
    *, thin: bool,
) -> None:  # fmt: skip
    strokes = epsilon_strokes([float(run.experiment.attack.epsilon) for run in shown])
    for run in group:
        look = looks[method_label(run.experiment)]
        stroke: dict[str, Any] = {"linewidth": 0.9 if thin else 1.6} | strokes[float(run.experiment.attack.epsilon)]
        for axes, metric, scale in ((top, REFERENCE_DELTA_ENERGY, 1), (bottom, ROBUST_ACCURACY, 100)):
            epochs, values = curve(run, metric)
            drawn = [scale * value for value in values]
            # A single epoch is a point: a line of it would not be seen.
            axes.plot(
                epochs,
                drawn,
                **dict(look) | {"marker": look["marker"] or ("." if len(epochs) == 1 else "")},
                **stroke,
                markevery=max(len(epochs) // 6, 1),
            )
            mark_onsets(axes, run, dict(zip(epochs, drawn, strict=True)), look["color"], size=6 if thin else 8)


def mark_onsets(axes: Axes, run: Run, at: Mapping[int, float], color: str, *, size: float = 8) -> None:
    """A marker on a run's line, whose values are `at` its epochs (from 1), wherever overfitting sets in."""
    for onset in overfitting(run):
        axes.plot(
            onset.epoch + 1, at[onset.epoch + 1], linestyle="", marker=ONSETS[onset.kind][0], markersize=size,
            markerfacecolor=color if onset.confirmed else "white", markeredgecolor=INK, markeredgewidth=0.8, zorder=4,
        )  # fmt: skip


def delta_energy_axis(axes: Axes, values: Iterable[float]) -> None:
    """Symmetric logarithm once a collapse makes it necessary: values then reach from -2 to tens or hundreds."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([*finite, 0.0]), max([*finite, 0.0])
    if max(-low, high) <= 3 * _LINEAR_BELOW:
        return
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW, linscale=1.2)
    axes.set_ylim(1.3 * low - 0.1, 1.4 * high + 0.1)
    largest = max(-low, high)
    mantissas = (1.0,) if largest > 100 else (1.0, 3.0)
    powers = math.ceil(math.log10(largest)) + 1
    # A run that diverges reaches 1e20: as many labels as can be read, whatever the number of decades.
    stride = -(-powers // _MOST_DECADES)
    first = 0 if stride == 1 else stride
    sizes = [mantissa * 10.0**power for power in range(first, powers, stride) for mantissa in mantissas]
    sizes = [0.5, *sizes] if stride == 1 else sizes
    ticks = [-size for size in reversed(sizes)] + [0.0, *sizes]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if 1.3 * low <= tick <= 1.4 * high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _curve_legend(shown: Sequence[Run], looks: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    texts = {float(run.experiment.attack.epsilon): epsilon_text(run.experiment) for run in shown}
    strokes = epsilon_strokes(list(texts))
    named = sorted(texts) if len(texts) <= 4 else [min(texts), max(texts)]
    if len(texts) > 1:
        handles += [
            Line2D([], [], color=INK, **strokes[value], label=f"training ε = {texts[value]}") for value in named
        ]
    found = [onset for run in shown for onset in overfitting(run)]
    for kind, (marker, name) in ONSETS.items():
        for confirmed in (True, False):
            if any(onset.kind == kind and onset.confirmed == confirmed for onset in found):
                handles.append(
                    Line2D(
                        [], [], linestyle="", marker=marker, markersize=7, markeredgecolor=INK, markeredgewidth=0.8,
                        markerfacecolor=MUTED if confirmed else "white",
                        label=name if confirmed else f"{name}, unconfirmed",
                    )
                )  # fmt: skip
    return handles


def _point_looks(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """Method -> color and marker of its points."""
    labels = _methods(runs)
    colors, markers = method_colors(labels), method_markers(labels)
    return {label: (colors[label], markers[label]) for label in labels}


def _scatter(
    axes: Axes, points: Sequence[HeldOutPoint], looks: Mapping[str, tuple[str, str]], across: Sequence[float],
    up: Sequence[float],
) -> None:  # fmt: skip
    for point, x, y in zip(points, across, up, strict=True):
        color, marker = looks[point.method]
        axes.plot(
            x, y, linestyle="", marker=marker, markeredgecolor=color, markersize=5.5,
            markerfacecolor="white" if point.collapsed else color, zorder=3, clip_on=False,
        )  # fmt: skip


def _legend(figure: Figure, handles: Sequence[Line2D], *, most: int) -> None:
    legend_outside(figure, handles, [str(handle.get_label()) for handle in handles], most=most)


def _method_legend(points: Sequence[HeldOutPoint], looks: Mapping[str, tuple[str, str]]) -> list[Line2D]:
    named = [(label, *looks[label]) for label in sorted({point.method for point in points})]
    handles = [Line2D([], [], linestyle="", marker=marker, color=color, label=label) for label, color, marker in named]
    if any(point.collapsed for point in points):
        handles.append(
            Line2D([], [], linestyle="", marker="o", markerfacecolor="white", color=MUTED, label="hollow: collapsed")
        )
    return handles
