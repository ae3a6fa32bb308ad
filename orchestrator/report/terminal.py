"""Confirmed results on a terminal: the report's rows of one protocol as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.report.tables import ResultRow


def print_results(rows: Sequence[ResultRow], console: Console, *, studies: Sequence[str] = (), note: str = "") -> None:
    """Print the rows of one protocol, which comes first, then a `note`; `studies` are the names of their studies.

    Where not all fits beside each other, only clean accuracy and what is left after the whole attack.
    """
    stages = list(rows[0].accuracies)
    table = _table(rows, stages, studies, gaps=True)
    unlimited = console.options.update(max_width=10_000)
    if console.measure(table, options=unlimited).maximum > console.width:
        table = _table(rows, list(dict.fromkeys([stages[0], stages[-1]])), studies, gaps=False)
    console.print(
        f"\naccuracy in %, mean ± sample std over seeds, best in bold; {rows[0].protocol.key}", soft_wrap=True
    )
    if note:
        console.print(note, style="yellow", soft_wrap=True)
    console.print(table)


def _table(rows: Sequence[ResultRow], stages: Sequence[str], studies: Sequence[str], *, gaps: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    # Names give way on a narrow terminal, never a number.
    if studies:
        table.add_column("study", overflow="fold")
    table.add_column("trial", no_wrap=True)
    table.add_column("method", overflow="fold")
    after = {stages[-1]: rows[0].protocol.attack}
    for heading in ["ε", "β", "γ", "seeds", *(after.get(stage, stage) for stage in stages), *(["best−last"] * gaps)]:
        table.add_column(heading, no_wrap=True)
    for place, row in enumerate(rows):
        table.add_row(
            *([studies[place]] if studies else []),
            str(row.trial), row.method, row.epsilon, row.strengths.betas_text, row.strengths.gamma_text,
            str(len(row.seeds)),
            *(Text(str(row.accuracies[stage]), style="bold" if stage in row.best else "") for stage in stages),
            *(["" if row.gap is None else str(row.gap)] * gaps),
        )  # fmt: skip
    return table
