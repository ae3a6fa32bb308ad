"""Names of the user's own in a figure: as long as they are, they neither leave it nor run into each other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LEGEND_CHARACTERS, _MOST_LINES = 56, 4


def lettered(name: str, characters: int) -> str:
    """A name in lines of at most so many characters, as it is written: to matplotlib `$` would begin a formula.

    Of a name that takes more than four lines the end is left out.
    """
    lines = textwrap.wrap(name, characters, break_on_hyphens=False, max_lines=_MOST_LINES, placeholder="…") or [name]
    return "\n".join(lines).replace("$", r"\$")


def legend_outside(
    figure: Figure, handles: Sequence[Any], names: Sequence[str], *, most: int, place: str = "upper"
) -> None:
    """A legend above or below (`lower`) all axes in at most `most` columns, as many as the width of the figure bears.

    Names are written whatever they begin with; of the handles that matplotlib collects itself, it drops those with `_`.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    shown = [lettered(name, _LEGEND_CHARACTERS) for name in names]
    for columns in range(min(most, len(handles)), 0, -1):
        legend = figure.legend(handles, shown, loc=f"outside {place} center", ncols=columns)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return
        legend.remove()
