"""How every figure of a report looks: one palette, one set of sizes, one way to SVG. Nothing touches pyplot.

matplotlib's settings are global and figures are drawn from several threads: whoever draws holds the one lock.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

WIDTH = 5.5
INK, MUTED, GRID = "#1a1a1a", "#6b6b6b", "#e3e3e3"
NATURAL_COLOR, ADVERSARIAL_COLOR = "#0072B2", "#D55E00"

# Okabe & Ito (2008) without yellow, which vanishes on white. What DER is compared with stands out most.
_FIXED = {"FGSM": "#D55E00", "FGSM + DER": "#0072B2"}
_PALETTE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a", "#0072B2", "#D55E00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "h", "<", ">")
_LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.4,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "svg.fonttype": "path",
}

_lock = threading.RLock()
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def _settings(**more: Any) -> Iterator[None]:
    with _lock, matplotlib.rc_context():
        # The user's own matplotlibrc would make reports differ from machine to machine.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS | more)
        yield


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Draw with the settings of this family of figures."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with _settings():
            return draw(*args, **kwargs)

    return drawn


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches; a layout engine keeps labels and legends inside."""
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, hspace=0.04, wspace=0.03)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def to_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG document: letters as outlines, the same bytes for the same content, ids salted by `name`."""
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _settings(**{"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    return buffer.getvalue().decode()


def method_colors(labels: Iterable[str]) -> dict[str, str]:
    """Method -> color. A method keeps its color in all figures of one report."""
    ordered = sorted(set(labels))
    free = [color for color in _PALETTE if color not in {_FIXED.get(label) for label in ordered}]
    others = [label for label in ordered if label not in _FIXED]
    colors = {label: free[place % len(free)] for place, label in enumerate(others)}
    return {label: _FIXED.get(label) or colors[label] for label in ordered}


def method_markers(labels: Iterable[str]) -> dict[str, str]:
    """Method -> marker, so that color is never the only difference."""
    return {label: _MARKERS[place % len(_MARKERS)] for place, label in enumerate(sorted(set(labels)))}


def method_lines(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method -> color and marker of its lines; markers only where there are more methods than colors."""
    colors = method_colors(labels)
    repeated = len(set(colors.values())) < len(colors)
    markers = method_markers(colors) if repeated else dict.fromkeys(colors, "")
    return {label: {"color": color, "marker": markers[label], "markersize": 4} for label, color in colors.items()}


def epsilon_strokes(epsilons: Sequence[float]) -> dict[float, dict[str, Any]]:
    """ε -> how its lines are drawn: a dash pattern while there are few values, else fainter and thinner if smaller."""
    ordered = sorted(set(epsilons), reverse=True)
    if len(ordered) <= len(_LINE_STYLES):
        return {epsilon: {"linestyle": style} for epsilon, style in zip(ordered, _LINE_STYLES, strict=False)}
    top, span = ordered[0], ordered[0] - ordered[-1]
    place = {epsilon: 1 - (top - epsilon) / span for epsilon in ordered}
    return {epsilon: {"alpha": 0.3 + 0.7 * at, "linewidth": 0.8 + at} for epsilon, at in place.items()}


def label_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Write (x, y, text, important) beside each point where there is room; an important text is always written.

    Call it once the limits of the axes are final; the size of the axes may still change a little.
    """
    size = figure.get_size_inches() * 72 * 0.8
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    places = [((x - left) / (right - left) * size[0], (y - bottom) / (top - bottom) * size[1]) for x, y, *_ in points]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in places]
    order = sorted(range(len(points)), key=lambda index: not points[index][3])
    for index in order:
        (x, y), (_, _, text, important) = places[index], points[index]
        width, height = 4.8 * len(text), 7
        offsets = [
            (4, 3),
            (4, -3 - height),
            (-4 - width, 3),
            (-4 - width, -3 - height),
            (-width / 2, 6),
            (6, -height / 2),
        ]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in offsets]
        free = [place for place, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)]
        if not (free or important):
            continue
        place = free[0] if free else 0
        taken.append(boxes[place])
        color = INK if important else MUTED
        axes.annotate(text, points[index][:2], offsets[place], textcoords="offset points", fontsize=7.5, color=color)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
