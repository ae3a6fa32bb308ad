"""One study from start to report: check everything first, then search, confirm, report, whatever interrupts."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.cluster.connection import local_capacity
from orchestrator.cluster.joining import JOB_VARIABLE
from orchestrator.exit_codes import INTERRUPTED, OK, SOME_FAILED
from orchestrator.host.environment import environment
from orchestrator.host.interrupt import Interrupt, StopRequested, listening
from orchestrator.records import events
from orchestrator.records.driver_lock import only_driver
from orchestrator.records.journal import Journal
from orchestrator.records.savings import savings
from orchestrator.records.storage import explained
from orchestrator.records.study_folder import check_defaults, create_study_folder, open_study_folder
from orchestrator.study.preflight import preflight
from orchestrator.study.progress import StudyView
from orchestrator.tracking import server
from orchestrator.tracking.tracker import Tracker
from search_spaces.addresses import sqlite_address, sqlite_file
from search_spaces.study import Study

if TYPE_CHECKING:
    from orchestrator.study.session import Session


def run_study(
    study: Study, folder: Path, address: str | None, console: Console, *, again: Sequence[str], search: bool = True
) -> int:
    """Run or continue a study in its folder; returns the exit code. The report is written whatever happens.

    `again` are the verb and the options that go on with it, but for a job of a cluster; the command is printed last
    after an interruption, and an error that ends started work carries it as a note.
    """
    say = partial(console.print, soft_wrap=True)
    preflight(study, folder, address, search, say=say)
    began = time.monotonic()
    if job := os.environ.get(JOB_VARIABLE):
        again = ["job", "resume", job]
    resume_line = f"resume with: {shlex.join(['orchestrator', *again])}"
    folder.mkdir(parents=True, exist_ok=True)
    with only_driver(folder), listening(say) as interrupt:
        # A confirmation may differ from the one that the study was started with.
        journal = create_study_folder(folder, study) if search else open_study_folder(folder)
        if search:
            check_defaults(study, journal)
        for notice in study.notices:
            say(f"note: {notice}", style="yellow")
        at_work = False
        view = StudyView(console)
        with Tracker(journal, server.tracking_uri(study, journal.folder.parent), view.say, interrupt) as tracker:
            journal.append(events.Started(pid=os.getpid(), environment=environment()))
            try:
                with _on_ray(study, journal, address, view, interrupt, search=search) as session:
                    tracker.start()
                    at_work = True
                    interrupted = _run_phases(session, search=search)
                journal.append(events.Interrupted() if interrupted else events.Finished())
                report = _write_report(journal)
            except BaseException as error:
                with suppress(OSError):  # the disk may be full; nothing hangs on this line
                    journal.append(events.Interrupted())
                if isinstance(error, KeyboardInterrupt):
                    say(resume_line)  # typer ends on it without a word
                elif at_work:
                    error.add_note(resume_line)
                raise
        if tracker.behind is not None:
            sync = shlex.join(["orchestrator", "sync", relative(journal.folder)])
            say(f"MLflow is behind ({tracker.behind}); later: {sync}", style="yellow")
        _conclude(journal, study, console, report, time.monotonic() - began)
    if interrupted:
        say(resume_line)
        return INTERRUPTED
    return SOME_FAILED if any(run.state == "failed" or run.not_evaluated for run in journal.runs()) else OK


@contextmanager
def _on_ray(
    study: Study, journal: Journal, address: str | None, view: StudyView, interrupt: Interrupt, *, search: bool
) -> Iterator[Session]:
    """A Ray on which everything has its place. Raises what stops the study before its work has begun."""
    from orchestrator.cluster.connection import connect

    with connect(address, _trial_slots(study)) as capacity:
        # Imported with Ray's environment set.
        from orchestrator.cluster import nodes
        from orchestrator.slots import reservations
        from orchestrator.study.session import Session

        if not capacity.private:
            nodes.require_alike(journal.folder.parent)
            reservations.release_left_over(journal)
        capacity.require_room(study, search=search)  # for both phases now, and not after days of search
        yield Session(study, journal, capacity, view, interrupt)


def _run_phases(session: Session, *, search: bool) -> bool:
    """Search, then confirm; returns whether the user interrupted."""
    from orchestrator.study.confirm import confirm
    from orchestrator.study.search import run_search

    with session.view:
        try:
            if search:
                with explained(session.study):
                    run_search(session)
                    session.interrupt.check()
            if session.study.confirm.top:
                confirm(session, anew=not search)
                session.interrupt.check()
            if session.view.is_idle:
                session.view.say("nothing was left to do: the study is finished")
        except StopRequested:
            return True
    return False


def _trial_slots(study: Study) -> int:
    """How many worker groups a private Ray may hold at once, in the phase that has more."""
    phases = [study.resources, *([study.confirm_resources] if study.confirm.top else [])]
    return max(1, *(local_capacity().concurrent_trials(resources)[0] for resources in phases))


def _conclude(journal: Journal, study: Study, console: Console, report: Path | None, seconds: float) -> None:
    _print_confirmed(journal, console)
    for saving in savings(journal.runs(), study):
        console.print(str(saving), soft_wrap=True)
    console.print(f"{seconds:.0f} s; everything is in {relative(journal.folder)}", soft_wrap=True)
    if report is not None:
        console.print(f"report:  {relative(report)}", soft_wrap=True)
    uri = server.tracking_uri(study, journal.folder.parent)
    file = sqlite_file(uri)
    where = uri if file is None else shlex.join(["mlflow", "ui", "--backend-store-uri", sqlite_address(relative(file))])
    console.print(f"MLflow:  {where}", soft_wrap=True)


def _print_confirmed(journal: Journal, console: Console) -> None:
    from orchestrator.report.tables import by_protocol, results
    from orchestrator.report.terminal import print_results

    for rows in by_protocol(results(journal.runs())).values():
        print_results(rows, console)


def _write_report(journal: Journal) -> Path | None:
    if not journal.runs():
        return None
    from orchestrator.report.page import write_report

    return write_report(journal)


def relative(path: Path) -> str:
    """A path as one would type it here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
