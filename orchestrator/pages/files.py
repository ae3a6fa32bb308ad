"""The folder of figures and tables beside a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from orchestrator.pages.csv_rows import CsvRow, to_csv
from orchestrator.pages.markup import Markup, element
from trainers.whole_files import write_whole, write_with

FIGURES_FOLDER = "figures"


def link(file: str, text: str) -> Markup:
    """From a page to a file of this folder."""
    return element("a", text, href=f"{FIGURES_FOLDER}/{file}")


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
