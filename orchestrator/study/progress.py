"""What the terminal shows while a study runs: one calm live table, or one plain line an event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.records.events import State
from orchestrator.report.labels import epsilon_text, strengths
from orchestrator.slots.messages import is_told
from trainers.config import Experiment
from trainers.diagnostics.overfitting import (
    CLEAN_ACCURACY,
    REFERENCE_DELTA_ENERGY,
    ROBUST_ACCURACY,
    onsets,
)
from trainers.records import EpochRecord

_BAR = 10
_SHOWN = 16
_WIDE = 110  # columns


@dataclass(eq=False)
class Row:
    """One run as the table shows it.

    `onset` is `collapsed at 9`, with a question mark where no second sign agrees, or nothing: drawn four times a
    second, looked for once an epoch. Of the records it keeps what it shows: a study has those of thousands of runs.
    """

    name: str
    experiment: Experiment
    records: list[EpochRecord] = field(default_factory=list)
    state: State = "running"
    onset: str = field(init=False)

    def __post_init__(self) -> None:
        self.records = [_shown(record) for record in self.records]
        self.onset = self._onset()

    def add(self, record: EpochRecord) -> None:
        """It has one epoch more."""
        self.records.append(_shown(record))
        self.onset = self._onset()

    def _onset(self) -> str:
        words = {"catastrophic": "collapsed", "robust": "overfits"}
        return ", ".join(
            f"{words[onset.kind]} at {onset.epoch + 1}{'' if onset.confirmed else '?'}"
            for onset in onsets(self.records, self.experiment)
        )


class StudyView:
    """Receives what happens, from one thread, and shows it; rich draws the live table in another."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False)
        self._rows: dict[str, Row] = {}
        self._phase = ""
        self._since = time.monotonic()
        # In this phase: how many runs it has, those that began, those that ended, and their epochs.
        self._total = 0
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._epochs_each = 0.0  # of a run that has not begun
        self._epochs_done = 0
        self._live: Live | None = None

    def __enter__(self) -> StudyView:
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            self.console.print(self.table())

    @property
    def is_idle(self) -> bool:
        """Whether no part of the study has begun."""
        return not self._phase

    def phase(self, text: str, *, runs: int = 0, epochs: int = 0) -> None:
        """A new part of the study begins: what it does, how many runs it has and how many epochs at most."""
        self._phase, self._since = text, time.monotonic()
        self._total, self._begun, self._ended = runs, set(), set()
        self._epochs_each, self._epochs_done = epochs / max(runs, 1), 0
        if self._live is None:
            self.say(text)

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, soft_wrap=True)

    def started(self, key: str, experiment: Experiment, records: Sequence[EpochRecord] = ()) -> None:
        """A run begins, or goes on after an interruption with the records that it has."""
        self._rows[key] = Row(key, experiment, list(records))
        self._begun.add(key)
        if self._live is None:
            done = f"  from epoch {records[-1].epoch + 1}" if records else ""
            self.say(f"{key}  started   {_point(experiment)}{done}")

    def restore(self, key: str, experiment: Experiment, records: Sequence[EpochRecord], state: State) -> None:
        """A run as its files have it, without a word; for one that is as it was there is nothing to do."""
        row = self._rows.get(key)
        last = [record.time for record in records[-1:]]
        if row is None or (len(row.records), [record.time for record in row.records[-1:]]) != (len(records), last):
            self._rows[key] = Row(key, experiment, list(records), state)
        else:
            row.state = state

    def epoch(self, key: str, record: EpochRecord) -> None:
        """An epoch has ended."""
        row = self._rows[key]
        if row.records and record.epoch <= row.records[-1].epoch:
            return
        before = row.onset
        row.add(record)
        self._epochs_done += 1
        if self._live is None and row.onset != before:
            self.say(f"{key}  {row.onset}")

    def ended(self, key: str, state: State, reason: str = "") -> None:
        """A run has ended; `state` is complete, stopped or failed."""
        self._ended.add(key)  # first: what has begun and not ended has a row, and is drawn by another thread
        self._begun.add(key)
        row = self._rows.get(key)
        if row is None:
            # Decided before an interruption, told after it.
            self.say(f"{key}  {state:<9} {_why(reason)}".rstrip())
            return
        row.state = state
        if self._live is None:
            why = "" if state == "complete" else _why(reason)
            said = (f"{key}  {state:<9} {_numbers(row)}", row.onset, why)
            self.say("  ".join(filter(None, said)))
        elif state == "failed":
            self.console.print(Text.assemble((f"{key} failed", "red"), f": {reason}"))

    # Drawing

    def _render(self) -> Group:
        return Group(self.table(), Text(self._status(), style="dim"))

    def _status(self) -> str:
        seconds = time.monotonic() - self._since
        parts = [self._phase, f"{seconds:.0f} s"]
        if self._total:
            parts.insert(1, f"{len(self._ended)} of {self._total} runs ended")
        if self._epochs_each and self._epochs_done:
            parts.append(f"about {seconds / self._epochs_done * self._epochs_left():.0f} s left")
        return "  ".join(parts)

    def _epochs_left(self) -> float:
        """Of the runs of this phase: those that go on have their own plan, whatever others were to come to."""
        going = [self._rows[key] for key in self._begun - self._ended]
        to_come = max(self._total - len(self._begun), 0)
        return to_come * self._epochs_each + sum(row.experiment.epochs - len(row.records) for row in going)

    def table(self) -> Table:
        """Every run, a line each; while the view is live, the newest and those that run."""
        # What has to give way on a narrow terminal: the bar, then long words; never a number or its heading.
        narrow = self.console.width < _WIDE
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0) if narrow else (0, 1))
        table.add_column("run", no_wrap=True)
        table.add_column("method", overflow="ellipsis")
        for title in ("ε", "β", "γ", "epochs"):
            table.add_column(title, no_wrap=True)
        for title in ("clean", "PGD-10", "ΔE"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("")
        rows = list(self._rows.values())  # a copy: rich draws in a thread of its own, while runs are added
        shown = rows
        if self._live is not None:
            newest = len(rows) - _SHOWN
            shown = [row for place, row in enumerate(rows) if place >= newest or row.state == "running"]
        if len(shown) < len(rows):
            table.add_row(f"… {len(rows) - len(shown)} more")
        for row in shown:
            point = swept(row.experiment)
            style = {"failed": "red", "running": "bold"}.get(row.state, "")
            clean, robust, energy = _values(row)
            ended = row.state if row.state in ("failed", "stopped") else ""
            warning = Text(row.onset, style="yellow") if row.onset else Text(ended)
            table.add_row(
                row.name, *point.values(), _progress(row, narrow), clean, robust, energy, warning, style=style
            )
        return table


def swept(experiment: Experiment) -> dict[str, str]:
    """The four things that this product sweeps, as text: method, ε, β and γ (a dash where there is none)."""
    found = strengths(experiment)
    return {
        "method": experiment.method.name,
        "epsilon": epsilon_text(experiment),
        "beta": found.betas_text or "-",
        "gamma": found.gamma_text or "-",
    }


def _shown(record: EpochRecord) -> EpochRecord:
    """With those of its metrics that a row needs. Their names come anew with each report of Ray Tune's."""
    told = {sys.intern(name): value for name, value in record.metrics.items() if is_told(name)}
    return replace(record, metrics=told)


def _point(experiment: Experiment) -> str:
    point = swept(experiment)
    return f"{point['method']:<11} ε={point['epsilon']}  β={point['beta']}  γ={point['gamma']}"


def _why(reason: str) -> str:
    return f"({reason})" if reason else ""


def _values(row: Row) -> tuple[str, str, str]:
    if not row.records:
        return "", "", ""
    metrics: Mapping[str, Any] = row.records[-1].metrics
    return (
        f"{100 * metrics[CLEAN_ACCURACY]:.1f}",
        f"{100 * metrics[ROBUST_ACCURACY]:.1f}",
        f"{metrics[REFERENCE_DELTA_ENERGY]:+.2f}",
    )


def _numbers(row: Row) -> str:
    clean, robust, energy = _values(row)
    return f"clean {clean} %  PGD-10 {robust} %  ΔE {energy}" if row.records else "no epoch"


def _progress(row: Row, narrow: bool) -> str:
    done = row.records[-1].epoch + 1 if row.records else 0
    filled = round(_BAR * done / row.experiment.epochs)
    bar = "" if narrow else f"{'━' * filled}{'┈' * (_BAR - filled)} "
    return f"{bar}{done}/{row.experiment.epochs}"
