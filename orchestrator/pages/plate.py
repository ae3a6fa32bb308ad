"""A figure with its heading, its caption and its data, as files and as a section of a page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from orchestrator.pages.csv_rows import CsvRow, to_csv
from orchestrator.pages.files import link, write_table
from orchestrator.pages.markup import Markup, element, inline_svg, join
from orchestrator.pages.style import to_svg
from trainers.whole_files import write_whole, write_with

_DPI = 150


@dataclass(frozen=True)
class Plate:
    """A figure with its heading, caption and data; `missing` is said where there is no figure, if there may be none."""

    name: str
    heading: str
    caption: str
    figure: Figure | None
    lines: list[CsvRow]
    missing: str = ""


def write_plate(plate: Plate, folder: Path, *, in_full: bool = False) -> Markup:
    """A figure as SVG and its data (if any) as CSV; `in_full` also as PNG with its caption, and as Parquet.

    Returns its section of a page. Without a figure, no file stays.
    """
    files = {kind: folder / f"{plate.name}.{kind}" for kind in ("svg", "png", "txt", "csv", "parquet")}
    if plate.figure is None:
        # What an earlier state, or another selection of networks, left behind would contradict the page.
        for file in files.values():
            file.unlink(missing_ok=True)
        return _section(plate, None)
    svg = to_svg(plate.figure, plate.name)
    write_whole(files["svg"], svg)
    if in_full:
        write_with(files["png"], partial(plate.figure.savefig, format="png", dpi=_DPI))
        write_whole(files["txt"], f"{plate.heading}. {plate.caption}\n")
    if plate.lines and in_full:
        write_table(plate.lines, folder / plate.name)
    elif plate.lines:
        write_whole(files["csv"], to_csv(plate.lines))
    return _section(plate, svg)


def _section(plate: Plate, svg: str | None) -> Markup:
    heading = element("h2", plate.heading)
    if svg is None:
        return element("section", heading, element("p", plate.missing, class_="none"))
    files = [link(f"{plate.name}.svg", "SVG")]
    # Pictures have no numbers, and no file of them.
    files += [link(f"{plate.name}.csv", "CSV")] if plate.lines else []
    caption = element("figcaption", plate.caption, " ", join(files, " "))
    return element("section", heading, element("figure", inline_svg(svg, plate.name, plate.heading), caption))
