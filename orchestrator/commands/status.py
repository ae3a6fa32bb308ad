"""A study seen from another terminal: the driver's own table, from the files that it writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.records.driver_lock import is_driven
from orchestrator.records.journal import Journal
from orchestrator.records.runs import Run
from orchestrator.records.study_folder import open_study_folder, read_study
from orchestrator.records.trials import trials
from orchestrator.study.progress import StudyView

_REFRESH_SECONDS = 2.0
_DRIVEN = {True: "running", False: "no driver is running", None: "without locks, nobody knows whether it runs"}


def show_status(folder: Path, console: Console, *, follow: bool) -> None:
    """Print every run of a study and whether a driver works on it.

    With `follow`, whenever something has changed, until no driver does.
    """
    journal = open_study_folder(folder)
    view = StudyView(console)
    shown = None
    while True:
        running = is_driven(journal.folder)
        runs = journal.runs()
        if shown != (runs, running):
            if follow and console.is_terminal:
                console.clear()
            for run in runs:
                view.restore(run.key, run.experiment, run.records, run.state)
            console.print(view.table())
            _summarize(journal, runs, console, running=running)
            shown = runs, running
        if not (follow and running):
            return
        time.sleep(_REFRESH_SECONDS)


def _summarize(journal: Journal, runs: Sequence[Run], console: Console, *, running: bool | None) -> None:
    ended, wanted = sum(trial.state != "running" for trial in trials(runs)), read_study(journal.folder).trials
    # A total may be lowered below what has ended.
    counted = f"{ended} of {wanted} trials ended" if ended <= wanted else f"{ended} trials ended, of {wanted} wanted"
    confirmations = sum(run.kind == "confirmation" for run in runs)
    console.print(
        f"{journal.folder.name}: {counted}, {confirmations} confirmations; {_DRIVEN[running]}",
        soft_wrap=True,
    )
