"""Energies at every step of PGD (WEAT, arXiv 2407.06315, fig. 1a)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.lens.seen import Seen
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.lettering import legend_outside
from orchestrator.pages.style import method_colors, method_markers, new_figure, styled
from trainers.lens.measure import TRACED

_QUANTITIES = (("energy", "step_energy", r"mean $E(x_t)$"), ("joint_energy", "step_joint_energy", r"mean $E(x_t, y)$"))
_IMAGE = -2.0


@styled
def energy_over_steps(seen: Sequence[Seen]) -> Figure | None:
    """A line a network: mean energies at the image, at the random start (step 0) and after each step of PGD-20."""
    traced = [one for one in seen if TRACED in one.attacked]
    if not traced:
        return None
    figure = new_figure(3.1, 6.4)
    grid = figure.subplots(1, 2)
    colors, markers = method_colors(one.name for one in traced), method_markers(one.name for one in traced)
    for axes, (quantity, steps, heading) in zip(grid, _QUANTITIES, strict=True):
        lines = []
        for one in traced:
            values = getattr(one.attacked[TRACED], steps).astype(np.float64).mean(axis=0)
            look = {"color": colors[one.name], "marker": markers[one.name], "markersize": 3.5}
            lines += axes.plot(range(len(values)), values, **look, markevery=4)
            natural = float(getattr(one.natural, quantity).astype(np.float64).mean())
            axes.plot([_IMAGE, 0], [natural, values[0]], **look, linewidth=0.8, linestyle=(0, (1, 1.5)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        last = len(values) - 1
        axes.set_xticks([_IMAGE, *range(0, last + 1, 5)], ["x", *map(str, range(0, last + 1, 5))])
        axes.set_xlabel("step t of PGD")
        axes.set_ylabel(f"{heading} [nats]")
    legend_outside(figure, lines, [one.name for one in traced], most=4)
    return figure


def step_lines(seen: Sequence[Seen]) -> list[CsvRow]:
    """One line per network and step, with mean and quartiles of both energies; the image itself is step -1."""
    lines: list[CsvRow] = []
    for one in seen:
        if TRACED not in one.attacked:
            continue
        traced = [
            np.c_[getattr(one.natural, quantity), getattr(one.attacked[TRACED], steps)].astype(np.float64)
            for quantity, steps, _ in _QUANTITIES
        ]
        for column in range(traced[0].shape[1]):
            line: CsvRow = {"network": one.name, "step": column - 1}
            for (quantity, _, _), values in zip(_QUANTITIES, traced, strict=True):
                low, high = np.quantile(values[:, column], (0.25, 0.75))
                line |= {f"{quantity}_mean": float(values[:, column].mean())}
                line |= {f"{quantity}_q25": low, f"{quantity}_q75": high}
            lines.append(line)
    return lines
