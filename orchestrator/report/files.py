"""Figures and tables as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from orchestrator.report import sections
from orchestrator.report.figure_data import CsvRow
from orchestrator.report.markup import Markup
from orchestrator.report.plates import Plate
from orchestrator.report.style import to_svg
from orchestrator.report.tables import to_csv
from trainers.whole_files import write_whole, write_with

_DPI = 150


def write_plate(plate: Plate, folder: Path, *, in_full: bool = False) -> Markup:
    """A figure as SVG and its data (if any) as CSV; `in_full` also as PNG with its caption, and as Parquet.

    Returns its section of a page. Without a figure, no file stays.
    """
    files = {kind: folder / f"{plate.name}.{kind}" for kind in ("svg", "png", "txt", "csv", "parquet")}
    if plate.figure is None:
        # What an earlier state, or another selection of networks, left behind would contradict the page.
        for file in files.values():
            file.unlink(missing_ok=True)
        return sections.plate(plate, None)
    svg = to_svg(plate.figure, plate.name)
    write_whole(files["svg"], svg)
    if in_full:
        write_with(files["png"], partial(plate.figure.savefig, format="png", dpi=_DPI))
        write_whole(files["txt"], f"{plate.heading}. {plate.caption}\n")
    if plate.lines and in_full:
        write_table(plate.lines, folder / plate.name)
    elif plate.lines:
        write_whole(files["csv"], to_csv(plate.lines))
    return sections.plate(plate, svg)


def remove_earlier(folder: Path, *names: str) -> None:
    """Remove the files of figures that have the names of networks in theirs, such as `mosaic-*`, before they are drawn.

    An earlier call saw others: what it left would be taken for this one's, and goes to MLflow with it.
    """
    for file in [file for name in names for file in folder.glob(name)]:
        file.unlink()


def write_table(lines: Sequence[CsvRow], stem: Path) -> None:
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
