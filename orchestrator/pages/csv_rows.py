"""Rows of a table as CSV. No matplotlib."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

CsvRow = dict[str, object]


def to_csv(lines: Iterable[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    """Lines as CSV: these columns, then others in the order in which they appear; cells that a line lacks are empty."""
    lines = list(lines)
    found = dict.fromkeys([*columns, *(column for line in lines for column in line)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
