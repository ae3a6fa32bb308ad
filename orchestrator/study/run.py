"""One study from start to report: check everything first, then search, confirm, report, whatever interrupts."""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from orchestrator.cluster.connection import local_capacity
from orchestrator.cluster.joining import JOB_VARIABLE, address_in_use, check_answers
from orchestrator.exit_codes import INTERRUPTED, OK, SOME_FAILED
from orchestrator.host import disk
from orchestrator.host.environment import environment
from orchestrator.host.interrupt import Interrupt, Interrupted, listening
from orchestrator.records.journal import STUDY_FILE, Journal
from orchestrator.records.savings import savings
from orchestrator.records.storage import check_is_ours, explained
from orchestrator.study.progress import StudyView
from orchestrator.tracking import server
from orchestrator.tracking.tracker import Tracker
from search_spaces.study import Study
from trainers.config import Data
from trainers.data.availability import check_available, data_directory, is_decoded
from trainers.problems import InvalidInput, Problem

if TYPE_CHECKING:
    from orchestrator.study.session import Session

_LOCK_ATTEMPTS, _LOCK_SECONDS = 5, 0.1


def preflight(
    study: Study, folder: Path, address: str | None, search: bool = True, *, say: Callable[[str], None]
) -> None:
    """Raise InvalidInput with everything that would stop this study in its folder, before anything is started.

    Images that nobody has decoded yet are decoded now. A study that is known already goes on without its tracking
    server: its journal keeps what the server misses. Without `search`, Optuna's database is not asked.
    """
    problems: list[Problem] = []

    def attempt(check: Callable[..., object], *arguments: object) -> None:
        try:
            check(*arguments)
        except InvalidInput as error:
            problems.extend(error.problems)

    attempt(_check_writable, folder.parent)
    for data in study.data:
        attempt(_check_data, data, say)
    if not (folder / STUDY_FILE).exists() and folder.parent.is_dir():  # where MLflow's file may be
        attempt(server.check_reachable, server.tracking_uri(study, folder.parent), study.tracking.experiment)
    if search and study.search.storage is not None:
        attempt(_check_database, study, folder)
    attempt(check_answers, address)
    if address_in_use(address) is None:
        capacity = local_capacity()
        attempt(capacity.require, study.resources, "resources")
        if study.confirm.top and study.confirm.workers:
            attempt(capacity.require, study.confirm_resources, "confirm")
    if problems:
        raise InvalidInput(dict.fromkeys(problems))


def run_study(
    study: Study, folder: Path, address: str | None, console: Console, *, again: Sequence[str], search: bool = True
) -> int:
    """Run or continue a study in its folder; returns the exit code. The report is written whatever happens.

    `again` are the verb and the options that go on with it, but for a job of a cluster; the command is printed last
    after an interruption, and an error that ends started work carries it as a note.
    """
    preflight(study, folder, address, search, say=lambda text: console.print(text, soft_wrap=True, markup=False))
    began = time.monotonic()
    if job := os.environ.get(JOB_VARIABLE):
        again = ["job", "resume", job]
    resume_line = f"resume with: {shlex.join(['orchestrator', *again])}"
    folder.mkdir(parents=True, exist_ok=True)
    with only_driver(folder), listening(console.print) as interrupt:
        # A confirmation may differ from the one that the study was started with.
        journal = Journal.create(folder, study) if search else Journal.open(folder)
        if search:
            journal.check_defaults(study)
        for notice in study.notices:
            console.print(f"note: {notice}", style="yellow", soft_wrap=True, markup=False)
        at_work = False
        view = StudyView(console)
        with Tracker(journal, server.tracking_uri(study, journal.folder.parent), view.say, interrupt) as tracker:
            journal.append("started", pid=os.getpid(), environment=environment())
            try:
                with _on_ray(study, journal, address, view, interrupt, search=search) as session:
                    tracker.start()
                    at_work = True
                    interrupted = _run_phases(session, search=search)
                journal.append("interrupted" if interrupted else "finished")
                report = _write_report(journal)
            except BaseException as error:
                with suppress(OSError):  # the disk may be full; nothing hangs on this line
                    journal.append("interrupted")
                if isinstance(error, KeyboardInterrupt):
                    console.print(resume_line, soft_wrap=True, markup=False)  # typer ends on it without a word
                elif at_work:
                    error.add_note(resume_line)
                raise
        if tracker.behind is not None:
            sync = shlex.join(["orchestrator", "sync", relative(journal.folder)])
            console.print(
                f"MLflow is behind ({tracker.behind}); later: {sync}", style="yellow", soft_wrap=True, markup=False
            )
        _conclude(journal, study, console, report, time.monotonic() - began)
    if interrupted:
        console.print(resume_line, soft_wrap=True, markup=False)
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
        if search:
            capacity.require(study.resources, "resources")
        if study.confirm.top:
            capacity.require(study.confirm_resources, "confirm")  # now, and not after days of search
        yield Session(study, journal, capacity, view, interrupt)


def _run_phases(session: Session, *, search: bool) -> bool:
    """Search, then confirm; returns whether the user interrupted."""
    from orchestrator.study import confirm, sweep

    with session.view:
        try:
            if search:
                with explained(session.study):
                    sweep.search(session)
                    session.interrupt.check()
            if session.study.confirm.top:
                confirm.confirm(session, anew=not search)
                session.interrupt.check()
            if session.view.is_idle:
                session.view.say("nothing was left to do: the study is finished")
        except Interrupted:
            return True
    return False


def _trial_slots(study: Study) -> int:
    """How many worker groups a private Ray may hold at once, in the phase that has more."""
    phases = [study.resources, *([study.confirm_resources] if study.confirm.top else [])]
    return max(1, *(local_capacity().concurrent_trials(resources)[0] for resources in phases))


def _conclude(journal: Journal, study: Study, console: Console, report: Path | None, seconds: float) -> None:
    _print_results(journal, console)
    for saving in savings(journal.runs(), study):
        console.print(str(saving), soft_wrap=True)
    console.print(f"{seconds:.0f} s; everything is in {relative(journal.folder)}", soft_wrap=True, markup=False)
    if report is not None:
        console.print(f"report:  {relative(report)}", soft_wrap=True, markup=False)
    uri = server.tracking_uri(study, journal.folder.parent)
    if uri.startswith("sqlite:///"):
        database = relative(Path(uri.removeprefix("sqlite:///")))
        look = shlex.join(["mlflow", "ui", "--backend-store-uri", f"sqlite:///{database}"])
        console.print(f"MLflow:  {look}", soft_wrap=True, markup=False)
    else:
        console.print(f"MLflow:  {uri}", soft_wrap=True, markup=False)


def _print_results(journal: Journal, console: Console) -> None:
    """The report's own rows, a table for each protocol."""
    from rich.table import Table

    from orchestrator.report.tables import by_protocol, results

    for protocol, rows in by_protocol(results(journal.runs())).items():
        stages = list(rows[0].accuracies)
        wide = console.width >= 120
        if not wide:
            stages = list(dict.fromkeys([stages[0], stages[-1]]))  # without an attack these are one
        console.print(f"\naccuracy in %, mean ± sample std over seeds, best in bold; {protocol.key}", soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        names = {stages[-1]: protocol.attack}
        accuracies = [names.get(stage, stage) for stage in stages]
        for heading in ("trial", "method", "ε", "β", "γ", "seeds", *accuracies, *(["best−last"] if wide else [])):
            table.add_column(heading, no_wrap=True)
        for row in rows:
            betas = "/".join(f"{beta:.3g}" for beta in (row.beta, row.der_beta) if beta is not None)
            gamma = "" if row.gamma is None else f"{row.gamma:.3g}"
            cells = [f"[bold]{row.accuracies[s]}[/bold]" if s in row.best else str(row.accuracies[s]) for s in stages]
            cells += ["" if row.gap is None else str(row.gap)] if wide else []
            table.add_row(str(row.trial), row.method, row.epsilon, betas, gamma, str(len(row.seeds)), *cells)
        console.print(table)


def _write_report(journal: Journal) -> Path | None:
    if not journal.runs():
        return None
    from orchestrator.report.page import write_report

    return write_report(journal.folder)


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Two drivers would both re-issue the same trials: hold a lock for as long as this process lives."""
    with open(folder / "lock", "w") as file:
        try:
            if not _locked(file):
                raise InvalidInput.single(str(folder), "another process is running this study")
        except OSError as error:
            raise InvalidInput.single(
                "--storage", f"{str(folder.parent)!r}: its file system has no locks ({error.strerror}), and a second "
                "driver of a study would not be noticed; mount it with them (Lustre: -o flock; NFS: its lock service) "
                "or name another folder"
            ) from error  # fmt: skip
        yield


def _locked(file: TextIO) -> bool:
    """Take the lock, unless a driver has it; `status` holds it for a moment, each time it looks."""
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_SECONDS)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _check_data(data: Data, say: Callable[[str], None]) -> None:
    """Read what no trial before has: a torn file, or a subset of other images, must not cost a study its name."""
    check_available(data)
    decoded = is_decoded(data)
    if decoded and data.subset is None:
        return
    from trainers.data.images import load_splits

    if not decoded:
        say(f"reading {data.name} in {data_directory(data)} for the first time")
    load_splits(data)


def _check_database(study: Study, folder: Path) -> None:
    journal = Journal.open(folder) if (folder / STUDY_FILE).exists() else None
    trials = set() if journal is None else {run.trial for run in journal.runs()}
    check_is_ours(study, None if journal is None else journal.identity, trials)


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput.single("--storage", f"{str(root)!r} can't be created: {error.strerror}") from error
    if not os.access(root, os.W_OK):
        raise InvalidInput.single("--storage", f"{str(root)!r} is not writable")
    disk.check_space(root)


def relative(path: Path) -> str:
    """A path as one would type it here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
