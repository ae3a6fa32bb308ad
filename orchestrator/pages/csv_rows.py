"""Rows of a table as CSV. No matplotlib."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping

CsvRow = dict[str, object]


def to_csv(lines: Iterable[Mapping[str, object]]) -> str:
    """Lines as CSV; columns in the order in which they first appear, cells that a line lacks are empty."""
    lines = list(lines)
    columns = list(dict.fromkeys(column for line in lines for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
