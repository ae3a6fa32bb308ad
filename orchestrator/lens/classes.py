"""Energy and error class by class, and the probabilistic margin against both energies (WEAT, fig. 5b-d)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from matplotlib.figure import Figure

from orchestrator.lens.seen import Seen, main_stage
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.lettering import lettered
from orchestrator.pages.style import ADVERSARIAL_COLOR, INK, MUTED, NATURAL_COLOR, new_figure, styled
from trainers.lens.statistics import class_correlations, class_rows, pearson, spearman

_MAX_COLUMNS = 4
_NAMED_CLASSES = 20
_TITLE_CHARACTERS, _ROW_CHARACTERS, _BESIDE_CHARACTERS = 16, 32, 13
_SHOWN = 1500
_ENERGIES = (("energy", r"$E(x^*)$"), ("joint_energy", r"$E(x^*, y)$"))


@styled
def class_profile(seen: Sequence[Seen]) -> Figure:
    """A column a network, classes from the lowest robust error to the highest: energies, entropy, errors."""
    shown = seen[:_MAX_COLUMNS]
    figure = new_figure(4.6, max(1.0 + 1.9 * len(shown), 3.6))
    grid = figure.subplots(3, len(shown), sharex="col", sharey="row" if len(shown) > 1 else False, squeeze=False)
    for column, one in enumerate(shown):
        rows = sorted(class_rows(one.natural, list(one.attacked.values())), key=lambda row: row.robust_error)
        places = range(len(rows))
        energies, entropy, errors = grid[:, column]
        energies.plot(places, [row.energy for row in rows], "o-", color=NATURAL_COLOR, markersize=3.5, label=r"$E(x)$")
        energies.plot(
            places, [row.joint_energy for row in rows], "s--", color=ADVERSARIAL_COLOR, markersize=3, label=r"$E(x,y)$"
        )
        entropy.plot(places, [row.entropy for row in rows], "o-", color=INK, markersize=3.5)
        for name, style, color, text in (
            ("robust_error", "^-", ADVERSARIAL_COLOR, "robust error"),
            ("probabilistic_error", "o-", NATURAL_COLOR, r"$1 - p_y$"),
            ("error", "s--", INK, "error"),
        ):
            errors.plot(
                places, [100 * getattr(row, name) for row in rows], style, color=color, markersize=3, label=text
            )
        if len(rows) <= _NAMED_CLASSES:
            errors.set_xticks(places, [str(row.label) for row in rows])
        errors.set_xlabel("class, by robust error")
        energies.set_title(lettered(one.name, _TITLE_CHARACTERS if len(shown) > 1 else _ROW_CHARACTERS))
    for axes, heading in zip(grid[:, 0], ("mean energy [nats]", "entropy [nats]", "error [%]"), strict=True):
        axes.set_ylabel(heading)
    figure.align_ylabels(grid[:, 0])
    for axes in (grid[0, -1], grid[2, -1]):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def class_lines(seen: Sequence[Seen]) -> list[CsvRow]:
    """One line per network and class."""
    return [
        {"network": one.name, **asdict(row)}
        for one in seen
        for row in class_rows(one.natural, list(one.attacked.values()))
    ]


def class_correlation_lines(seen: Sequence[Seen]) -> list[CsvRow]:
    """One line per network and pair of columns: Spearman over classes."""
    return [
        {"network": one.name, "column": left, "other_column": right, "classes": len(rows), "spearman": value}
        for one in seen
        for rows in (class_rows(one.natural, list(one.attacked.values())),)
        for (left, right), value in class_correlations(rows).items()
    ]


@styled
def margin_against_energy(seen: Sequence[Seen]) -> Figure:
    """A row a network: probabilistic margin of adversarial points over E(x*) left and E(x*,y) right."""
    stage = main_stage(seen)
    figure = new_figure(0.5 + 1.65 * len(seen), 5.2)
    grid = figure.subplots(len(seen), 2, sharey=True, squeeze=False)
    for row, one in enumerate(seen):
        points = one.attacked[stage]
        every = max(len(points) // _SHOWN, 1)
        for axes, (quantity, heading) in zip(grid[row], _ENERGIES, strict=True):
            energy = getattr(points, quantity)
            wrong = points.margin < 0
            for mask, color, marker in ((~wrong, NATURAL_COLOR, "o"), (wrong, ADVERSARIAL_COLOR, "x")):
                axes.plot(
                    energy[::every][mask[::every]], points.margin[::every][mask[::every]], linestyle="", marker=marker,
                    markersize=2.2, markeredgewidth=0.6, alpha=0.5, color=color, rasterized=True,
                )  # fmt: skip
            text = f"r = {_signed(pearson(energy, points.margin))}   ρ = {_signed(spearman(energy, points.margin))}"
            axes.set_title(text, fontsize=8, color=MUTED, loc="right")
            if row == len(seen) - 1:
                axes.set_xlabel(f"{heading} [nats]")
        grid[row, 0].set_title(lettered(one.name, _BESIDE_CHARACTERS), fontsize=8, loc="left")
        grid[row, 0].set_ylabel(r"$p_y - \max_{k \neq y}\, p_k$")
    return figure


def margin_lines(seen: Sequence[Seen]) -> list[CsvRow]:
    """One line per network, attack and energy: Pearson and Spearman with the probabilistic margin at x*."""
    return [
        {"network": one.name, "attack": stage, "energy": quantity,
         "pearson": pearson(getattr(points, quantity), points.margin),
         "spearman": spearman(getattr(points, quantity), points.margin)}
        for one in seen
        for stage, points in one.attacked.items()
        for quantity, _ in _ENERGIES
    ]  # fmt: skip


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}"
