"""Where an attack drives images in the plane of their two energies (WEAT, arXiv 2407.06315, fig. 1b-d)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from orchestrator.lens.seen import COLUMNS, Seen, main_stage, panels
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.lettering import lettered
from orchestrator.pages.style import MUTED, new_figure, styled
from trainers.lens.points import Array

ARROWS = 250
_COLORS = "viridis"
_TITLE_CHARACTERS = 24
_FRAME_MILLISECONDS, _LAST_MILLISECONDS = 350, 1800


@dataclass(frozen=True)
class _Window:
    """What a panel shows: limits (low, high) of both axes and the length that has the last color."""

    across: tuple[float, float]
    up: tuple[float, float]
    longest: float


@styled
def drift(seen: Sequence[Seen]) -> Figure:
    """A panel a network, each with axes of its own."""
    stage = main_stage(seen)
    figure, grid = panels(len(seen), 2.45)
    for place, (axes, one) in enumerate(zip(grid, seen, strict=True)):
        title = f"{lettered(one.name, _TITLE_CHARACTERS)}\nrobust {100 * one.robust_accuracy(stage):.1f} %"
        arrows = _panel(axes, one, stage, _window([one], stage), title)
        bar = figure.colorbar(arrows, ax=axes, fraction=0.08, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7)
        _name_axes(axes, first=place % COLUMNS == 0)
    return figure


@styled
def drift_over_epochs(epochs: Sequence[Seen]) -> Figure:
    """A panel an epoch of one run, all with the same axes and colors; at most nine, spread evenly."""
    stage = main_stage(epochs)
    chosen = [epochs[place] for place in np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), 9)).astype(int))]
    window = _window(epochs, stage)
    figure, grid = panels(len(chosen), 2.1, 2.15)
    for place, (axes, one) in enumerate(zip(grid, chosen, strict=True)):
        arrows = _panel(axes, one, stage, window, _epoch_title(one, stage))
        _name_axes(axes, first=place % COLUMNS == 0)
    bar = figure.colorbar(arrows, ax=grid, fraction=0.025, pad=0.01, label="length of the arrow [nats]")
    bar.outline.set_visible(False)
    return figure


def drift_animation(epochs: Sequence[Seen]) -> bytes | None:
    """The same as a GIF, a frame an epoch; None with fewer than two."""
    if len(epochs) < 2:
        return None
    stage = main_stage(epochs)
    window = _window(epochs, stage)
    frames = [_frame(one, stage, window) for one in epochs]
    durations = [_FRAME_MILLISECONDS] * (len(frames) - 1) + [_LAST_MILLISECONDS]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


def drift_lines(seen: Sequence[Seen]) -> list[CsvRow]:
    """One line per network or epoch: mean start, mean arrow and lengths of the arrows of all images."""
    stage = main_stage(seen)
    lines: list[CsvRow] = []
    for one in seen:
        marginal, joint = one.deltas(stage)
        length = np.hypot(marginal, joint)
        lines.append(
            {
                "network": one.name,
                "epoch": "" if one.network.epoch is None else one.network.epoch + 1,
                "attack": stage,
                "energy_mean": float(one.natural.energy.astype(np.float64).mean()),
                "joint_energy_mean": float(one.natural.joint_energy.astype(np.float64).mean()),
                "energy_drift_mean": float(-marginal.mean()),
                "joint_energy_drift_mean": float(-joint.mean()),
                "length_mean": float(length.mean()),
                "length_q95": float(np.quantile(length, 0.95)),
                "robust_accuracy": one.robust_accuracy(stage),
            }
        )
    return lines


def shown_images(count: int) -> Array:
    """Positions of the images that get an arrow: all, or as many as can be told apart, spread evenly."""
    result: Array = np.unique(np.linspace(0, count - 1, min(count, ARROWS)).astype(int))
    return result


@styled
def _frame(one: Seen, stage: str, window: _Window) -> Image.Image:
    figure = new_figure(3.6, 4.4)
    axes = figure.subplots()
    arrows = _panel(axes, one, stage, window, _epoch_title(one, stage))
    _name_axes(axes, first=True)
    bar = figure.colorbar(arrows, ax=axes, fraction=0.05, pad=0.02, label="length of the arrow [nats]")
    bar.outline.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)


def _panel(axes: Axes, one: Seen, stage: str, window: _Window, title: str) -> Quiver:
    rows = shown_images(len(one.natural))
    marginal, joint = one.deltas(stage)
    arrows = axes.quiver(
        one.natural.energy[rows], one.natural.joint_energy[rows], -marginal[rows], -joint[rows],
        np.hypot(marginal, joint)[rows], angles="xy", scale_units="xy", scale=1, width=0.005, headwidth=4,
        headlength=5, cmap=_COLORS, clim=(0, window.longest), alpha=0.8, rasterized=True, zorder=2,
    )  # fmt: skip
    axes.set_xlim(window.across)
    axes.set_ylim(window.up)
    axes.axline((0, 0), slope=1, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    axes.annotate("loss 0", (0.98, 0.03), xycoords="axes fraction", ha="right", va="bottom", fontsize=7, color=MUTED)
    axes.set_title(title, fontsize=8)
    return arrows


def _window(seen: Sequence[Seen], stage: str) -> _Window:
    """Around the starts and the ends of all arrows, outliers apart, with the same scale for all of `seen`."""
    spans = []
    for quantity in ("energy", "joint_energy"):
        ends = [getattr(points, quantity) for one in seen for points in (one.natural, one.attacked[stage])]
        low, high = np.quantile(np.concatenate(ends).astype(np.float64), (0.005, 0.995))
        margin = 0.06 * max(high - low, 0.1)
        spans.append((float(low - margin), float(high + margin)))
    lengths = np.concatenate([np.hypot(*one.deltas(stage)) for one in seen])
    return _Window(spans[0], spans[1], float(max(np.quantile(lengths, 0.98), 1e-6)))


def _epoch_title(one: Seen, stage: str) -> str:
    assert one.network.epoch is not None
    return f"epoch {one.network.epoch + 1}, robust {100 * one.robust_accuracy(stage):.1f} %"


def _name_axes(axes: Axes, *, first: bool) -> None:
    axes.set_xlabel(r"$E(x)$ [nats]")
    if first:
        axes.set_ylabel(r"$E(x, y)$ [nats]")
