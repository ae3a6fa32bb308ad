"""Trials that are stopped: in the epoch of the onset, for good, with the reason everywhere and the best epoch kept."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console

from orchestrator.records import events
from orchestrator.records.runs import Run
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import create_study_folder, open_study_folder, read_identity, read_study
from orchestrator.tracking.server import RUN_TAG
from search_spaces.study import parse_study
from tests.integration.conftest import command, run, unmeasured, write_study
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


def timeless(trial: Run) -> list[dict[str, float]]:
    clocks = ("seconds", "images_per_second")
    return [{name: v for name, v in record.metrics.items() if not name.endswith(clocks)} for record in trial.records]


class Stopped:
    """A study whose driver was killed as soon as it had decided to stop its first trial, resumed to the end."""

    def __init__(self, folder: Path) -> None:
        write_study(folder, **SECTIONS)
        journal_file = folder / "runs" / "tiny" / "journal.jsonl"
        first = subprocess.Popen(
            command("sweep", "tiny.yaml"),
            cwd=folder, env=unmeasured(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 600
        while not (journal_file.exists() and '"stopping"' in journal_file.read_text()):
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline, "no trial was stopped"
            time.sleep(0.002)
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
    assert timeless(study.trials[0]) == timeless(study.trials[1])[: len(study.trials[0].records)]


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


def test_a_group_of_workers_stops_within_one_epoch_and_takes_the_next_trial(tmp_path: Path) -> None:
    content = yaml.safe_load(write_study(tmp_path, **SECTIONS).read_text())
    study = parse_study({**content, "resources": {"workers": 2, "concurrent_trials": 1}})
    journal = create_study_folder(tmp_path / "study", study)
    from orchestrator.cluster import connection
    from orchestrator.host.interrupt import Interrupt
    from orchestrator.study.progress import StudyView

    with connection.connect(None, trial_slots=1) as capacity:
        from orchestrator.study.search import run_search
        from orchestrator.study.session import Session

        run_search(Session(study, journal, capacity, StudyView(Console(quiet=True)), Interrupt(print)))
    first, second, third = journal.runs()
    assert [trial.state for trial in (first, second, third)] == ["stopped", "complete", "stopped"]
    assert len(second.records) == EPOCHS
    for trial in (first, third):
        # The group may be an epoch ahead of the decision, no more.
        assert onset(trial) + 1 <= len(trial.records) <= onset(trial) + 2
    groups = {(trial.folder / "placement_group").read_text() for trial in (first, second, third)}
    assert len(groups) == 1
