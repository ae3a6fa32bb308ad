"""Figures and tables as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from orchestrator.report import sections
from orchestrator.report.figure_data import Line
from orchestrator.report.markup import Markup
from orchestrator.report.plates import Plate
from orchestrator.report.style import to_svg
from orchestrator.report.tables import to_csv
from trainers.whole_files import write_whole, write_with

_DPI = 150


def write_plate(plate: Plate, folder: Path) -> Markup:
    """SVG, PNG, caption and data (if any) of a figure; returns its section of a page. Without one, nothing stays."""
    files = {kind: folder / f"{plate.name}.{kind}" for kind in ("svg", "png", "csv", "parquet", "txt")}
    if plate.figure is None:
        # What another selection of networks left behind would contradict the page.
        for file in files.values():
            file.unlink(missing_ok=True)
        return sections.plate(plate, None)
    svg = to_svg(plate.figure, plate.name)
    write_whole(files["svg"], svg)
    write_with(files["png"], partial(plate.figure.savefig, format="png", dpi=_DPI))
    write_whole(files["txt"], f"{plate.heading}. {plate.caption}\n")
    if plate.lines:
        write_table(plate.lines, folder / plate.name)
    return sections.plate(plate, svg)


def write_table(lines: Sequence[Line], stem: Path) -> None:
    """As CSV and as Parquet; what is empty in a line is missing there."""
    write_whole(stem.with_suffix(".csv"), to_csv(lines))
    columns = list(dict.fromkeys(column for line in lines for column in line))
    content = {column: [None if line.get(column, "") == "" else line[column] for line in lines] for column in columns}
    write_parquet(content, stem.with_suffix(".parquet"))


def write_parquet(columns: Mapping[str, object], file: Path) -> None:
    """Columns by name."""
    import pyarrow
    import pyarrow.parquet

    write_with(file, partial(pyarrow.parquet.write_table, pyarrow.table(dict(columns))))
