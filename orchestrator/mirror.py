"""Brings MLflow up to date from a study's journal.

The journal comes first. What the server does not have yet is sent from it: while a study runs, in the background
(`tracker`), and later by the same code. Sending twice is harmless: a metric's timestamp is fixed where it was born, and
runs are found before one is made.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.environment import environment
from orchestrator.journal import EVALUATION_FILE, STUDY_FILE, Journal, Run, trial_key
from orchestrator.ladder import RUNG
from orchestrator.savings import epochs_saved, seconds_saved
from orchestrator.seeds import spreads, trials
from orchestrator.tracking import (
    KIND_TAG,
    RUN_TAG,
    UPLOAD_SECONDS,
    connected,
    find_experiment,
    find_or_create,
    outage,
    uploading,
)
from trainers import catalog
from trainers.diagnostics.overfitting import onsets
from trainers.evaluation.result import Evaluation
from trainers.pixels import PixelValue

if TYPE_CHECKING:
    from mlflow.entities import Run as TrackedRun

logger = logging.getLogger(__name__)

_STUDY_TAG, _PARENT_TAG = "orchestrator.study", "mlflow.parentRunId"
_CLOSED_TAG = "orchestrator.closed"  # with how many records
_PATIENCE_SECONDS = 2 * UPLOAD_SECONDS  # what one update may lose to things that fail
_BATCH = 1000
_STATUS = {"complete": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


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
        self._study = journal.study()
        self._client = connected(uri)
        self._experiment = find_experiment(self._client, uri, self._study.tracking.experiment)
        self._parent = self._find_or_create(journal.identity, self._study.name, "study", {}).info.run_id
        self._client.update_run(self._parent, status="RUNNING")
        known = self._client.get_run(self._parent).data
        self._settings = known.params | known.tags  # as earlier starts of the study left them
        self._described = False
        self._run_ids: dict[str, str] = {}
        self._sent: dict[str, int] = {}
        self._closed: dict[str, tuple[int, str, str]] = {}
        self._evaluated: dict[str, Evaluation] = {}
        self._concluded: set[int] = set()
        self._rungs = 0
        self._failed: set[str] = set()

    def update(self, *, ended: bool) -> None:
        """Send every record, state and result that this process has not sent yet.

        What fails keeps nothing else from being sent, unless the server is away: then whatever it raises is raised at
        once, else NotSent in the end.
        """
        runs = self._journal.runs()
        failures: dict[str, Exception] = {}
        lost = 0.0
        for what, send in self._steps(runs, ended=ended):
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
        self._failed = set(failures)
        if ended:
            unfinished = any(run.state == "running" for run in runs)
            interrupted = unfinished or self._journal.events()[-1]["event"] == "interrupted"
            self._client.set_terminated(self._parent, "KILLED" if interrupted else "FINISHED")
        if failures:
            what, first = next(iter(failures.items()))
            more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
            raise NotSent(f"{what}{more} not sent: {outage(first)}") from first

    def _steps(self, runs: Sequence[Run], *, ended: bool) -> Iterator[tuple[str, Callable[[], None]]]:
        """What there is to send, by name; what has just failed comes after the other runs, for it may take long."""
        if not self._described:
            yield "the study's settings", self._log_study
        for run in sorted(runs, key=lambda run: run.key in self._failed):
            yield run.key, partial(self._send_run, run)
        for trial in trials(runs):
            if trial.over_seeds and trial.state != "running" and trial.trial not in self._concluded:
                yield f"{trial.key} over seeds", partial(self._send_spreads, trial)
        rungs = [event for event in self._journal.events() if event["event"] == RUNG]
        if rungs[self._rungs :]:
            yield "the ladder", partial(self._send_rungs, rungs)
        if ended:
            yield "the report", self._send_report

    # Runs

    def _find_or_create(self, identity: str, name: str, kind: str, tags: Mapping[str, str]) -> TrackedRun:
        everything = {RUN_TAG: identity, KIND_TAG: kind, _STUDY_TAG: self._study.name, **tags}
        return find_or_create(self._client, self._experiment, identity, name, everything)

    def _run_id(self, run: Run) -> str:
        known = self._run_ids
        if run.key not in known:
            method = run.experiment.method.name
            name = f"{run.key} {method}"
            identity = f"{self._journal.identity}/{run.key}"
            tracked = self._find_or_create(identity, name, run.kind, {_PARENT_TAG: self._parent})
            if _is_closed(run, tracked):
                self._sent[run.key] = len(run.records)
                self._closed[run.key] = _ending(run)
            else:
                self._log_start(run, tracked.info.run_id)
            # Known from here on only: what an outage cut short is done again.
            known[run.key] = tracked.info.run_id
        return known[run.key]

    def _log_start(self, run: Run, run_id: str) -> None:
        from mlflow.entities import Param, RunTag

        tags = {"digest": run.experiment.digest(), "trial": str(run.trial), "folder": str(run.folder)}
        tags |= origin_tags(run)
        if run.seeds > 1:
            tags["seeds"] = str(run.seeds)
        tags |= {f"{path}.text": value.text for path, value in pixel_values(run) if "/" in value.text}
        parameters = [Param(name, str(value)) for name, value in flatten(run.experiment.model_dump())]
        self._client.log_batch(run_id, params=parameters, tags=[RunTag(key, value) for key, value in tags.items()])
        with uploading():
            self._client.log_text(run_id, run.experiment.to_yaml(), "experiment.yaml")
            self._client.log_text(run_id, json.dumps(environment(), indent=1), "environment.json")

    def _log_study(self) -> None:
        from mlflow.entities import Param, RunTag

        settings = self._study.model_dump(include={"search", "confirm", "resources"})
        given = {name: str(value) for name, value in flatten(settings)}
        # MLflow refuses to change a parameter: what a later start of the study changed is a tag.
        self._client.log_batch(
            self._parent,
            params=[Param(name, value) for name, value in given.items() if name not in self._settings],
            tags=[RunTag(name, value) for name, value in given.items() if self._settings.get(name, value) != value],
        )
        with uploading():
            self._client.log_artifact(self._parent, str(self._journal.folder / STUDY_FILE))
        self._described = True

    # What happened in them

    def _send_run(self, run: Run) -> None:
        run_id = self._run_id(run)
        self._send_records(run, run_id)
        # The journal gives the same object until the file changes: a run may be evaluated again, under other settings.
        if run.evaluation is not None and run.evaluation is not self._evaluated.get(run.key):
            self._send_evaluation(run, run.evaluation, run_id)
            self._evaluated[run.key] = run.evaluation
        # Workers may end an epoch that they had begun when their trial was stopped.
        if run.state != "running" and self._closed.get(run.key) != _ending(run):
            self._close(run, run_id)
            self._closed[run.key] = _ending(run)

    def _send_records(self, run: Run, run_id: str) -> None:
        from mlflow.entities import Metric

        sent = self._sent.get(run.key, 0)
        metrics = [
            Metric(name, value, int(record.time * 1000), record.epoch)
            for record in run.records[sent:]
            for name, value in record.metrics.items()
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
        self._sent[run.key] = len(run.records)

    def _close(self, run: Run, run_id: str) -> None:
        from mlflow.entities import Metric, RunTag

        found = onsets(run.records, run.experiment)
        time = int(run.records[-1].time * 1000) if run.records else 0
        tags = [RunTag("reason", _ending(run)[2])]
        tags += [RunTag(name, value) for name, value in origin_tags(run).items()]
        tags += [RunTag(f"overfitting.{o.kind}", "confirmed" if o.confirmed else "unconfirmed") for o in found]
        metrics = [Metric(f"overfitting/{onset.kind}_epoch", onset.epoch, time, onset.epoch) for onset in found]
        if run.state == "stopped":
            tags.append(RunTag("stopped_by", run.stopped_by))
            saved = {"epochs": epochs_saved(run), "seconds": seconds_saved(run, self._study.resources)}
            metrics += [Metric(f"saved/{name}", value, time, len(run.records) - 1) for name, value in saved.items()]
        self._client.log_batch(run_id, metrics=metrics, tags=tags)
        checkpoints = run.folder / "checkpoints"
        best, newest = checkpoints / "best", max(checkpoints.glob("epoch_*"), default=None)
        with uploading():
            for name, folder in (("best", best), ("last", newest)):
                if folder is not None and folder.is_dir():
                    self._client.log_artifacts(run_id, str(folder), f"checkpoints/{name}")
            if run.records:
                self._log_energy_figure(run, run_id)
        # After all that it stands for: uploads of many runs are not to be done again at each start.
        self._client.set_tag(run_id, _CLOSED_TAG, str(len(run.records)))
        self._client.set_terminated(run_id, _STATUS[run.state])

    def _send_spreads(self, trial: Run) -> None:
        """The objectives of a trial over its seeds, with the run of the first one."""
        from mlflow.entities import Metric

        time = max((int(run.records[-1].time * 1000) for run in trial.over_seeds if run.records), default=0)
        values: dict[str, float | None] = {}
        for name, spread in zip(self._study.search.objectives, spreads(trial), strict=False):
            values |= {f"over_seeds/{name}/mean": spread.mean, f"over_seeds/{name}/std": spread.deviation}
        metrics = [Metric(name, value, time, 0) for name, value in values.items() if value is not None]
        self._client.log_batch(self._run_ids[trial.key], metrics=metrics)
        self._concluded.add(trial.trial)

    def _send_rungs(self, rungs: Sequence[Mapping[str, Any]]) -> None:
        for event in rungs[self._rungs :]:
            self._send_rung(event)
            self._rungs += 1

    def _send_rung(self, event: Mapping[str, Any]) -> None:
        """What a rung of the ladder found, with each trial that got there."""
        from mlflow.entities import Metric

        fast = "_fast" if event["fast"] else ""
        name = f"held_out/{event['attack'].replace(',', '_')}{fast}_accuracy"
        for trial, accuracy in event["accuracies"]:
            metric = Metric(name, accuracy, int(event["time"] * 1000), 0)
            self._client.log_batch(self._run_ids[trial_key(trial)], metrics=[metric])

    def _log_energy_figure(self, run: Run, run_id: str) -> None:
        from orchestrator.report.figures import run_energies

        figure = run_energies(run)
        if figure is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "energies.png"
            figure.savefig(path, dpi=120)
            self._client.log_artifact(run_id, str(path), "figures")

    def _send_evaluation(self, run: Run, evaluation: Evaluation, run_id: str) -> None:
        from mlflow.entities import Metric, RunTag

        file = run.folder / EVALUATION_FILE
        time = int(file.stat().st_mtime * 1000)
        attack = evaluation.protocol.attack.replace(",", "_")  # MLflow takes no comma in a name
        values = {f"test/after/{stage}": value for stage, value in evaluation.accuracies.items()}
        values[f"test/{attack}_accuracy"] = evaluation.robust_accuracy
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, value, time, evaluation.epoch) for name, value in values.items()],
            tags=[RunTag("protocol", evaluation.protocol.key)],
        )
        with uploading():
            self._client.log_artifact(run_id, str(file))

    def _send_report(self) -> None:
        from orchestrator.report.page import REPORT_FILE
        from orchestrator.report.sections import FIGURES_FOLDER

        report, figures = (self._journal.folder / name for name in (REPORT_FILE, FIGURES_FOLDER))
        with uploading():
            if report.exists():
                self._client.log_artifact(self._parent, str(report))
            if figures.is_dir():
                self._client.log_artifacts(self._parent, str(figures), figures.name)


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf; lengths in pixels as plain numbers, so that a UI can put them on an axis."""
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        elif isinstance(value, str) and path.rpartition(".")[2] in ("epsilon", "step_size"):
            yield path, float(PixelValue(value))
        elif value is not None:
            yield path, value
        elif key in catalog.OPTIONAL_SLOTS:
            # An empty slot is a value to compare by; any other field that is not set is not a parameter.
            yield f"{path}.name", "none"


def _ending(run: Run) -> tuple[int, str, str]:
    """With how many records a run has ended, how, and why. One that was not complete may go on and end again."""
    return len(run.records), run.state, run.reason or run.state


def _is_closed(run: Run, tracked: TrackedRun) -> bool:
    """Whether another process sent everything, the uploads too: a run is closed last."""
    records, state, reason = _ending(run)
    tags = tracked.data.tags
    as_now = tags.get(_CLOSED_TAG) == str(records) and tags.get("reason") == reason
    return tracked.info.status == _STATUS.get(state) and (as_now or state == "complete")


def origin_tags(run: Run) -> dict[str, str]:
    """Where the first epochs of a run were computed, if not in it."""
    return {} if run.origin is None else {f"origin.{name}": str(value) for name, value in asdict(run.origin).items()}


def pixel_values(run: Run) -> Iterator[tuple[str, PixelValue]]:
    """The experiment's lengths that remember how they were written."""
    experiment = run.experiment
    yield "attack.epsilon", experiment.attack.epsilon
    yield "attack.step_size", experiment.attack.step_size
    yield "evaluation.epsilon", experiment.evaluation.epsilon
