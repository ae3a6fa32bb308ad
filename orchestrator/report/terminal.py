"""Confirmed results on a terminal: the report's rows of one protocol as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.report.tables import ResultRow

_WIDE = 120  # columns; on less, only clean accuracy and what is left after the whole attack


def print_results(rows: Sequence[ResultRow], console: Console, *, studies: Sequence[str] = (), note: str = "") -> None:
    """Print the rows of one protocol, which comes first, then a `note`; `studies` are the names of their studies."""
    protocol, wide = rows[0].protocol, console.width >= _WIDE
    stages = list(rows[0].accuracies)
    if not wide:
        stages = list(dict.fromkeys([stages[0], stages[-1]]))  # without an attack these are one
    names = {stages[-1]: protocol.attack}
    console.print(f"\naccuracy in %, mean ± sample std over seeds, best in bold; {protocol.key}", soft_wrap=True)
    if note:
        console.print(note, style="yellow", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    headings = ["trial", "method", "ε", "β", "γ", "seeds", *(names.get(stage, stage) for stage in stages)]
    for heading in [*(["study"] if studies else []), *headings, *(["best−last"] if wide else [])]:
        table.add_column(heading, no_wrap=True)
    for place, row in enumerate(rows):
        betas, gamma = row.strengths.betas_text, row.strengths.gamma_text
        cells = [escape(studies[place])] if studies else []
        cells += [str(row.trial), row.method, row.epsilon, betas, gamma, str(len(row.seeds))]
        cells += [f"[bold]{row.accuracies[s]}[/bold]" if s in row.best else str(row.accuracies[s]) for s in stages]
        cells += ["" if row.gap is None else str(row.gap)] if wide else []
        table.add_row(*cells)
    console.print(table)
