"""Confirmed results of several studies side by side: ranked where the protocol is the same, apart where it is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console

from orchestrator.commands.listing import check_format, print_rows
from orchestrator.records.study_folder import open_study_folder
from orchestrator.report.tables import ResultRow, mark_best, results
from orchestrator.report.terminal import print_results
from trainers.evaluation.result import Protocol
from trainers.problems import InvalidInput


@dataclass(frozen=True)
class Ranking:
    """Rows under one protocol, most robust first; `studies` names the study of each row.

    `apart` says how the protocol differs from that of the first ranking; empty for the first.
    """

    protocol: Protocol
    studies: tuple[str, ...]
    rows: tuple[ResultRow, ...]
    apart: str = ""


def rankings(studies: Iterable[tuple[str, Sequence[ResultRow]]]) -> list[Ranking]:
    """One ranking per protocol over (name, confirmed rows) of studies; the protocol of most studies comes first."""
    groups: dict[Protocol, list[tuple[str, ResultRow]]] = {}
    for name, rows in studies:
        for row in rows:
            groups.setdefault(row.protocol, []).append((name, row))
    ordered = sorted(groups.items(), key=lambda group: (-len({name for name, _ in group[1]}), group[0].key))
    found = []
    for protocol, members in ordered:
        marked = mark_best([row for _, row in members])
        pairs = sorted(
            zip((name for name, _ in members), marked, strict=True),
            key=lambda pair: (-pair[1].robust.mean, pair[0], pair[1].trial),
        )
        names, rows = zip(*pairs, strict=True)
        found.append(Ranking(protocol, names, rows, differences(ordered[0][0], protocol)))
    return found


def differences(first: Protocol, other: Protocol) -> str:
    """In which fields a protocol differs from another, for example `epsilon 8/255, not 0.1`; empty if in none."""
    pairs = [(field.name, getattr(first, field.name), getattr(other, field.name)) for field in fields(Protocol)]
    return ", ".join(f"{name} {theirs}, not {ours}" for name, ours, theirs in pairs if ours != theirs)


def compare(folders: Sequence[Path], form: str, console: Console) -> None:
    """`orchestrator compare`: print the rankings as tables, JSON or CSV. Raises InvalidInput if there is nothing."""
    check_format(form)
    journals = [open_study_folder(folder) for folder in folders]
    names = _names([journal.folder for journal in journals])
    confirmed = [(name, results(journal.runs())) for name, journal in zip(names, journals, strict=True)]
    found = rankings(confirmed)
    if not found:
        raise InvalidInput.single(", ".join(names), "nothing is confirmed yet; `orchestrator confirm` does it")
    if form != "table":
        lines = [
            {"ranking": place + 1, "rank": rank + 1, "study": name, **row.flat()}
            for place, ranking in enumerate(found)
            for rank, (name, row) in enumerate(zip(ranking.studies, ranking.rows, strict=True))
        ]
        columns = dict.fromkeys(column for line in lines for column in line)
        print_rows([{column: line.get(column) for column in columns} for line in lines], form)
        return
    for ranking in found:
        note = f"not comparable with the first table: {ranking.apart}" if ranking.apart else ""
        print_results(ranking.rows, console, studies=ranking.studies, note=note)
    for name, rows in confirmed:
        if not rows:
            console.print(f"\n{name}: nothing is confirmed yet")


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as many folders above as tell them apart. Raises InvalidInput for one given twice."""
    for folder in folders:
        if list(folders).count(folder) > 1:
            raise InvalidInput.single(str(folder), "is given twice")
    return [_shortest(folder, [other for other in folders if other != folder]) for folder in folders]


def _shortest(folder: Path, others: Sequence[Path]) -> str:
    for count in range(1, len(folder.parts)):
        ending = folder.parts[-count:]
        if all(other.parts[-count:] != ending for other in others):
            return "/".join(ending)
    return str(folder)
