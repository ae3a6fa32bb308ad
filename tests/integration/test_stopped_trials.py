"""Trials that are stopped: in the epoch of the onset, for good, with the reason everywhere and the best epoch kept."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

from orchestrator.records import events
from orchestrator.records.runs import Run
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import open_study_folder, read_identity, read_study
from orchestrator.tracking.server import RUN_TAG
from tests.faults.processes import wait_while
from tests.integration.conftest import command, run, unmeasured, write_study
from tests.recorded import timeless
from trainers.checkpoint import load
from trainers.diagnostics.overfitting import catastrophic_onset

pytestmark = pytest.mark.ray

EPOCHS = 12
DROP = "evaluation.catastrophic.accuracy_drop"
# Any fall of robust accuracy counts as a collapse of the first and the third trial; of the second none does.
POINTS = [
    {"method.name": "fgsm", "attack.epsilon": epsilon, DROP: drop}
    for epsilon, drop in ((0.3, 0.99), (0.3, 0.01), (0.2, 0.99))
]
SECTIONS: dict[str, object] = {
    "experiment": {
        "epochs": EPOCHS,
        "optimizer": {"learning_rate": 0.5, "batch_size": 50},
        "evaluation": {"epsilon": 0.1, "probe_samples": 40, "catastrophic": {"above_chance": 0}},
    },
    "space": {"attack.epsilon": [0.2, 0.3], DROP: [0.01, 0.99]},
    "search": {"sampler": "random", "trials": 3, "start": POINTS, "stop": {"catastrophic": True}},
    "confirm": {"top": 0},
    "resources": {"concurrent_trials": 1},
}


def onset(trial: Run) -> int:
    """Where robust accuracy first fell, by the detector alone."""
    robust = [record.metrics["val/pgd10_accuracy"] for record in trial.records]
    found = catastrophic_onset(robust, [0.0] * len(robust), 0.1, trial.experiment.evaluation.catastrophic)
    assert found is not None
    return found.epoch


class Stopped:
    """A study whose driver was killed as soon as it had decided to stop its first trial, resumed to the end."""

    def __init__(self, folder: Path) -> None:
        write_study(folder, **SECTIONS)
        journal_file = folder / "runs" / "tiny" / "journal.jsonl"
        first = subprocess.Popen(
            command("sweep", "tiny.yaml"),
            cwd=folder, env=unmeasured(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        decided = lambda: journal_file.exists() and '"stopping"' in journal_file.read_text()  # noqa: E731
        wait_while(first, decided, "a trial that is stopped", every=0.002)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        self.result = run("resume", "runs/tiny", cwd=folder, measured=False)
        self.folder = folder
        self.journal = open_study_folder(folder / "runs" / "tiny")
        self.trials = self.journal.runs()
        self.decisions = [event for event in self.journal.events() if isinstance(event, events.Stopped)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    return Stopped(tmp_path_factory.mktemp("stopped"))


def test_a_stopped_trial_is_no_failure(study: Stopped) -> None:
    assert study.result.returncode == 0, study.result.stdout + study.result.stderr
    assert [trial.state for trial in study.trials] == ["stopped", "complete", "stopped"]
    saved = sum(EPOCHS - len(study.trials[number].records) for number in (0, 2))
    assert f"Stopped early by catastrophic: 2 runs; {saved} of {3 * EPOCHS} epochs and" in study.result.stdout


def test_trials_end_in_the_epoch_of_the_onset_and_resuming_changes_no_decision(study: Stopped) -> None:
    assert [(event.key, event.epoch) for event in study.decisions] == [
        (trial.key, onset(trial)) for trial in (study.trials[0], study.trials[2])
    ]
    for trial in (study.trials[0], study.trials[2]):
        assert [record.epoch for record in trial.records] == list(range(onset(trial) + 1))
    # The second trial is the first one with a detector that never fires: until the stop they are one.
    first, second, _ = study.trials
    assert timeless(first.records) == timeless(second.records[: len(first.records)])


def test_optuna_knows_stopped_trials_as_pruned_and_the_first_was_not_issued_again(study: Stopped) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = optuna.load_study(
        study_name="tiny", storage=storage_url(read_study(study.journal.folder), study.journal.folder)
    )
    assert [trial.state.name for trial in stored.trials] == ["PRUNED", "COMPLETE", "PRUNED"]
    assert [trial.user_attrs["attempts"] for trial in stored.trials] == [1, 1, 1]
    assert stored.trials[0].user_attrs["reason"] == study.trials[0].reason == study.decisions[0].reason


def test_the_best_checkpoint_is_an_epoch_before_the_onset_and_counts(study: Stopped) -> None:
    for trial in (study.trials[0], study.trials[2]):
        best = load(trial.folder / "checkpoints" / "best")
        assert best.record.epoch < onset(trial)
        assert trial.objectives == tuple(
            best.record.metrics[name] for name in ("val/clean_accuracy", "val/pgd10_accuracy")
        )


def test_mlflow_and_the_report_give_the_reason_and_what_was_saved(study: Stopped) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{study.folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("adversarial-training")
    page = (study.journal.folder / "report.html").read_text()
    for trial in (study.trials[0], study.trials[2]):
        identity = f"{read_identity(study.journal.folder)}/{trial.key}"
        (tracked,) = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{identity}'")
        assert tracked.info.status == "KILLED"
        assert (tracked.data.tags["stopped_by"], tracked.data.tags["reason"]) == ("catastrophic", trial.reason)
        assert tracked.data.metrics["saved/epochs"] == EPOCHS - len(trial.records)
        assert tracked.data.metrics["saved/seconds"] > 0
        steps = [metric.step for metric in client.get_metric_history(tracked.info.run_id, "val/pgd10_accuracy")]
        assert sorted(steps) == list(range(len(trial.records)))
        assert trial.reason.replace(">", "&gt;") in page
