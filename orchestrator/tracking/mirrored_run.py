"""One training run on the MLflow server: how it began, its epochs, its evaluation, and how it ended."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.evaluation.protocols import checkpoint_folder
from orchestrator.records.journal import EVALUATION_FILE
from orchestrator.records.runs import Run
from orchestrator.records.savings import epochs_saved, seconds_saved
from orchestrator.tracking.parameters import parameters
from orchestrator.tracking.server import uploading
from search_spaces.study import Resources
from trainers.diagnostics.overfitting import onsets
from trainers.evaluation.result import EvaluationResult
from trainers.pixels import PixelValue

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as TrackedRun

_CLOSED_TAG = "orchestrator.closed"  # with how many records
_EVALUATED_TAG = "orchestrator.evaluated"  # which evaluation is there, whole
_PROBLEM_TAG = "not_evaluated"  # why the last evaluation failed; empty once one did not
_BATCH = 1000
_STATUS = {"complete": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MirroredRun:
    """Remembers what of one run the server has. `run_id` is the server's name for it.

    `environment` is what it began with, which may be long ago and elsewhere; None where the journal does not say.
    Numbers and files are sent apart: an artifact store that refuses a large checkpoint keeps no run from its end.
    """

    def __init__(
        self, client: MlflowClient, tracked: TrackedRun, run: Run, environment: Mapping[str, Any] | None
    ) -> None:
        self._client = client
        self._environment = environment
        self._tracked = tracked  # as it was when this process came upon it
        self.run_id: str = tracked.info.run_id
        closed = _is_closed(run, tracked)
        self._start_sent = closed
        self._records_sent = len(run.records) if closed else 0
        self._ending_sent = _ending(run) if closed else None
        self._closed = self._ending_sent
        known = run.evaluation is not None and tracked.data.tags.get(_EVALUATED_TAG) == _digest(run.evaluation)
        self._evaluation_sent = self._evaluation_uploaded = run.evaluation if known else None
        self._problem_sent = tracked.data.tags.get(_PROBLEM_TAG, "")
        self._uploaded: set[tuple[str, object]] = set()  # names, each with the ending that it belongs to

    def update(self, run: Run, resources: Resources) -> None:
        """Send the numbers that have come since; `resources` are those of a trial, to count what its stop has saved."""
        if not self._start_sent:
            self._send_start(run)
            self._start_sent = True
        self._send_records(run)
        # The journal gives the same object until the file changes: a run may be evaluated again, under other settings.
        if run.evaluation is not None and run.evaluation is not self._evaluation_sent:
            self._send_evaluation(run, run.evaluation)
            self._evaluation_sent = run.evaluation
        if run.not_evaluated != self._problem_sent:
            self._client.set_tag(self.run_id, _PROBLEM_TAG, run.not_evaluated)
            self._problem_sent = run.not_evaluated
        # Workers may end an epoch that they had begun when their trial was stopped.
        if run.state != "running" and self._ending_sent != _ending(run):
            self._send_ending(run, resources)
            self._client.set_terminated(self.run_id, _STATUS[run.state])
            self._ending_sent = _ending(run)

    def files(self, run: Run) -> Iterator[tuple[str, Callable[[], None]]]:
        """The files that the server lacks by now, by name, and last the tag that it has them all; what sends each."""
        evaluation, ending = run.evaluation, _ending(run)
        if evaluation is not None and evaluation is not self._evaluation_uploaded:
            yield EVALUATION_FILE, partial(self._upload_evaluation, run, evaluation)
        if self._closed == ending:
            return  # nothing is looked for on disk
        wanted = {(name, of): upload for name, of, upload in self._wanted(run)}
        for file, upload in wanted.items():
            if file not in self._uploaded:
                yield file[0], partial(self._upload, file, upload)
        if self._ending_sent == ending and self._uploaded >= set(wanted):
            yield _CLOSED_TAG, partial(self._close, run)

    def _wanted(self, run: Run) -> Iterator[tuple[str, object, Callable[[], None]]]:
        """The files that a run has now but for its evaluation, the largest last: name, ending, what uploads it."""
        yield "experiment.yaml", None, partial(self._upload_start, run)
        if run.state == "running":
            return
        if run.records:
            yield "figures", _ending(run), partial(self._upload_energy_figure, run)
        for checkpoint in ("best", "last"):
            folder, name = checkpoint_folder(run.folder, checkpoint), f"checkpoints/{checkpoint}"
            if folder.is_dir():
                yield name, _ending(run), partial(self._client.log_artifacts, self.run_id, str(folder), name)

    def _upload(self, file: tuple[str, object], upload: Callable[[], None]) -> None:
        with uploading():
            upload()
        self._uploaded.add(file)

    def _upload_start(self, run: Run) -> None:
        self._client.log_text(self.run_id, run.experiment.to_yaml(), "experiment.yaml")
        if self._environment is not None:
            self._client.log_text(self.run_id, json.dumps(self._environment, indent=1), "environment.json")

    def _upload_evaluation(self, run: Run, evaluation: EvaluationResult) -> None:
        with uploading():
            self._client.log_artifact(self.run_id, str(run.folder / EVALUATION_FILE))
        # After its numbers and its file: no later process sends it again.
        self._client.set_tag(self.run_id, _EVALUATED_TAG, _digest(evaluation))
        self._evaluation_uploaded = evaluation

    def _close(self, run: Run) -> None:
        # After all that it stands for: uploads of many runs are not to be done again at each start.
        self._client.set_tag(self.run_id, _CLOSED_TAG, str(len(run.records)))
        self._closed = _ending(run)

    def _send_start(self, run: Run) -> None:
        from mlflow.entities import RunTag

        tags = {"digest": run.experiment.digest(), "trial": str(run.trial), "folder": str(run.folder)}
        tags |= _origin_tags(run)
        if run.seeds > 1:
            tags["seeds"] = str(run.seeds)
        tags |= {f"{path}.text": value.text for path, value in _pixel_values(run) if "/" in value.text}
        given, changed = parameters(run.experiment.model_dump(), self._tracked)
        self._client.log_batch(self.run_id, params=given, tags=[*changed, *(RunTag(*tag) for tag in tags.items())])

    def _send_records(self, run: Run) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(record.time * 1000), record.epoch)
            for record in run.records[self._records_sent :]
            for name, value in record.metrics.items()
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])
        self._records_sent = len(run.records)

    def _send_evaluation(self, run: Run, evaluation: EvaluationResult) -> None:
        from mlflow.entities import Metric, RunTag

        time = int((run.folder / EVALUATION_FILE).stat().st_mtime * 1000)
        attack = evaluation.protocol.attack.replace(",", "_")  # MLflow takes no comma in a name
        values = {f"test/after/{stage}": value for stage, value in evaluation.accuracies.items()}
        values[f"test/{attack}_accuracy"] = evaluation.robust_accuracy
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(name, value, time, evaluation.epoch) for name, value in values.items()],
            tags=[RunTag("protocol", evaluation.protocol.key)],
        )

    def _send_ending(self, run: Run, resources: Resources) -> None:
        """Why it ended, where overfitting set in, and what a stop has saved."""
        from mlflow.entities import Metric, RunTag

        found = onsets(run.records, run.experiment)
        time = int(run.records[-1].time * 1000) if run.records else 0
        tags = {"reason": run.reason or run.state} | _origin_tags(run)
        tags |= {f"overfitting.{onset.kind}": "confirmed" if onset.confirmed else "unconfirmed" for onset in found}
        metrics = [Metric(f"overfitting/{onset.kind}_epoch", onset.epoch, time, onset.epoch) for onset in found]
        if run.state == "stopped":
            tags["stopped_by"] = run.stopped_by
            saved = {"epochs": epochs_saved(run), "seconds": seconds_saved(run, resources)}
            metrics += [Metric(f"saved/{name}", value, time, len(run.records) - 1) for name, value in saved.items()]
        self._client.log_batch(self.run_id, metrics=metrics, tags=[RunTag(*tag) for tag in tags.items()])

    def _upload_energy_figure(self, run: Run) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from orchestrator.report.figures import run_energies

        figure = run_energies(run)
        if figure is None:
            return
        figure.set_dpi(120)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "energies.png"
            # `savefig` would draw it twice, which is most of what a short run costs here.
            FigureCanvasAgg(figure).print_png(str(path))
            self._client.log_artifact(self.run_id, str(path), "figures")


def _ending(run: Run) -> tuple[int, str, str]:
    """With how many records a run has ended, how, and why. One that was not complete may go on and end again."""
    return len(run.records), run.state, run.reason or run.state


def _is_closed(run: Run, tracked: TrackedRun) -> bool:
    """Whether another process sent everything but the evaluation, the uploads too: a run is closed last."""
    records, state, reason = _ending(run)
    tags = tracked.data.tags
    as_now = tags.get(_CLOSED_TAG) == str(records) and tags.get("reason") == reason
    return as_now and _STATUS.get(state) == str(tracked.info.status)


def _digest(evaluation: EvaluationResult) -> str:
    """The same for the same evaluation in every process."""
    return hashlib.sha256(repr(evaluation).encode()).hexdigest()


def _origin_tags(run: Run) -> dict[str, str]:
    """Where the first epochs of a run were computed, if not in it."""
    return {} if run.origin is None else {f"origin.{name}": str(value) for name, value in asdict(run.origin).items()}


def _pixel_values(run: Run) -> Iterator[tuple[str, PixelValue]]:
    """The experiment's lengths that remember how they were written."""
    experiment = run.experiment
    yield "attack.epsilon", experiment.attack.epsilon
    yield "attack.step_size", experiment.attack.step_size
    yield "evaluation.epsilon", experiment.evaluation.epsilon
