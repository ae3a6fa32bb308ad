"""Brings MLflow up to date from a study's journal.

The journal comes first. What the server does not have yet is sent from it: while a study runs, in the background
(`tracker`), and later by the same code. Sending twice is harmless: a metric's timestamp is fixed where it was born, and
runs are found before one is made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.records.events import Event, Finished, Interrupted, Issued, RungClimbed, Started
from orchestrator.records.journal import Journal
from orchestrator.records.runs import Run, trial_key
from orchestrator.records.study_folder import STUDY_FILE, read_identity, read_study
from orchestrator.records.trials import Trial, trials
from orchestrator.tracking.mirrored_run import MirroredRun
from orchestrator.tracking.parameters import parameters
from orchestrator.tracking.server import (
    KIND_TAG,
    RUN_TAG,
    UPLOAD_SECONDS,
    connected,
    find_experiment,
    find_or_create,
    outage,
    uploading,
)

if TYPE_CHECKING:
    from mlflow.entities import Run as TrackedRun

logger = logging.getLogger(__name__)

_STUDY_TAG, _PARENT_TAG = "orchestrator.study", "mlflow.parentRunId"
_PATIENCE_SECONDS = 2 * UPLOAD_SECONDS  # what one update may lose to things that fail


class NotSent(ConnectionError):
    """The server answers, but did not take some of what it was sent."""


def sync(journal: Journal, uri: str) -> None:
    """Bring the server up to date now. Raises ConnectionError if it did not take everything."""
    from mlflow.exceptions import MlflowException

    try:
        Mirror(journal, uri).update(ended=True)
    except MlflowException as error:
        raise ConnectionError(f"{uri} is not up to date: {outage(error)}; the journal keeps what it lacks") from error


class Mirror:
    """One study's runs on one server: remembers what this process has sent, asks the server for the rest."""

    def __init__(self, journal: Journal, uri: str) -> None:
        self._journal = journal
        self._study = read_study(journal.folder)
        self._identity = read_identity(journal.folder)
        self._client = connected(uri)
        self._experiment = find_experiment(self._client, uri, self._study.tracking.experiment)
        self._parent = self._find_or_create(self._identity, self._study.name, "study", {}).info.run_id
        self._client.update_run(self._parent, status="RUNNING")
        self._tracked = self._client.get_run(self._parent)  # with the settings that earlier starts left
        self._settings_sent = False
        self._runs: dict[str, MirroredRun] = {}
        self._spreads_sent: set[int] = set()  # of these trials
        self._rungs_sent = 0
        self._failed: set[str] = set()  # runs in the last update, and other steps

    def update(self, *, ended: bool) -> None:
        """Send every record, state and result that this process has not sent yet.

        What fails keeps nothing else from being sent, unless the server is away: then whatever it raises is raised at
        once, else NotSent in the end.
        """
        runs, events = self._journal.runs(), self._journal.events()
        failures = self._attempt(self._steps(runs, events, ended=ended))
        self._failed = {what.partition(":")[0] for what in failures}
        if ended:
            self._client.set_terminated(self._parent, "FINISHED" if _is_finished(events) else "KILLED")
        if failures:
            what, first = next(iter(failures.items()))
            more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
            raise NotSent(f"{what}{more} not sent: {outage(first)}") from first

    def _steps(
        self, runs: Sequence[Run], events: Sequence[Event], *, ended: bool
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        """What there is to send, by name; what has just failed comes after the other runs, for it may take long."""
        if not self._settings_sent:
            yield "the study's settings", self._send_settings
        runs, environments = sorted(runs, key=lambda run: run.key in self._failed), _environments(events)
        for run in runs:
            yield run.key, partial(self._send_run, run, environments.get(run.key))
        for trial in trials(runs):
            if trial.seeds > 1 and trial.state != "running" and trial.number not in self._spreads_sent:
                yield f"{trial.first.key} over seeds", partial(self._send_spreads, trial)
        rungs = [event for event in events if isinstance(event, RungClimbed)]
        if rungs[self._rungs_sent :]:
            yield "the ladder", partial(self._send_rungs, rungs)
        # All runs are told before the first file, which a store may refuse or take long for.
        for run in runs:
            if run.key in self._runs:
                for name, send in self._runs[run.key].files(run):
                    yield f"{run.key}: {name}", send
        if ended:
            yield "the report", self._send_report

    def _attempt(self, steps: Iterable[tuple[str, Callable[[], None]]]) -> dict[str, Exception]:
        """Take all steps, or as many as patience lasts; returns those that failed. Raises if the server is away."""
        failures: dict[str, Exception] = {}
        lost = 0.0
        for what, send in steps:
            began = time.monotonic()
            try:
                send()
            except Exception as error:
                failures[what] = error
                logger.debug("%s is not sent", what, exc_info=True)
                lost += time.monotonic() - began
                self._client.get_run(self._parent)  # away, the server would cost a timeout for each of many runs
                if lost > _PATIENCE_SECONDS:
                    break
        return failures

    def _find_or_create(self, identity: str, name: str, kind: str, tags: Mapping[str, str]) -> TrackedRun:
        everything = {RUN_TAG: identity, KIND_TAG: kind, _STUDY_TAG: self._study.name, **tags}
        return find_or_create(self._client, self._experiment, identity, name, everything)

    def _send_settings(self) -> None:
        settings = self._study.model_dump(include={"search", "confirm", "resources"})
        given, changed = parameters(settings, self._tracked)
        self._client.log_batch(self._parent, params=given, tags=changed)
        with uploading():
            self._client.log_artifact(self._parent, str(self._journal.folder / STUDY_FILE))
        self._settings_sent = True

    def _send_run(self, run: Run, environment: Mapping[str, Any] | None) -> None:
        if run.key not in self._runs:
            identity, name = f"{self._identity}/{run.key}", f"{run.key} {run.experiment.method.name}"
            tracked = self._find_or_create(identity, name, run.kind, {_PARENT_TAG: self._parent})
            self._runs[run.key] = MirroredRun(self._client, tracked, run, environment)
        self._runs[run.key].update(run, self._study.resources)

    def _send_spreads(self, trial: Trial) -> None:
        """The objectives of a trial over its seeds, with the run of the first one."""
        from mlflow.entities import Metric

        time = max((int(run.records[-1].time * 1000) for run in trial.runs if run.records), default=0)
        values: dict[str, float | None] = {}
        for name, spread in zip(self._study.search.objectives, trial.spreads(), strict=False):
            values |= {f"over_seeds/{name}/mean": spread.mean, f"over_seeds/{name}/std": spread.deviation}
        metrics = [Metric(name, value, time, 0) for name, value in values.items() if value is not None]
        self._client.log_batch(self._runs[trial.first.key].run_id, metrics=metrics)
        self._spreads_sent.add(trial.number)

    def _send_rungs(self, rungs: Sequence[RungClimbed]) -> None:
        for rung in rungs[self._rungs_sent :]:
            self._send_rung(rung)
            self._rungs_sent += 1

    def _send_rung(self, rung: RungClimbed) -> None:
        """What a rung of the ladder found, with each trial that got there."""
        from mlflow.entities import Metric

        # Two rungs may have one attack: a metric is of one protocol.
        protocol = f"{rung.attack.replace(',', '_')}_n{rung.samples}{'_fast' if rung.fast else ''}"
        for trial, accuracy in rung.accuracies:
            metric = Metric(f"held_out/{protocol}_accuracy", accuracy, int(rung.time * 1000), 0)
            self._client.log_batch(self._runs[trial_key(trial)].run_id, metrics=[metric])

    def _send_report(self) -> None:
        from orchestrator.pages.files import FIGURES_FOLDER
        from orchestrator.report.page import REPORT_FILE

        report, figures = (self._journal.folder / name for name in (REPORT_FILE, FIGURES_FOLDER))
        with uploading():
            if report.exists():
                self._client.log_artifact(self._parent, str(report))
            if figures.is_dir():
                self._client.log_artifacts(self._parent, str(figures), figures.name)


def _is_finished(events: Sequence[Event]) -> bool:
    """Whether the last start of the study got to its end. Runs that nobody wants any more may be open for ever."""
    states = (Started, Finished, Interrupted)
    last = next((event for event in reversed(events) if isinstance(event, states)), None)
    return isinstance(last, Finished)


def _environments(events: Sequence[Event]) -> dict[str, Mapping[str, Any] | None]:
    """With what each run began, by key: the environment of the start of the study that issued it first."""
    found: dict[str, Mapping[str, Any] | None] = {}
    environment = None
    for event in events:
        if isinstance(event, Started):
            environment = event.environment
        elif isinstance(event, Issued):
            found.setdefault(event.key, environment)
    return found
