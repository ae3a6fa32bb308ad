"""A study that is interrupted and then killed goes on where it was, and ends as if nothing had happened.

Its trials share their beginning: the first is interrupted before it has left it, the second killed after it branched.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import open_study_folder, read_identity, read_study
from orchestrator.tracking.server import RUN_TAG
from tests.faults.processes import wait_while
from tests.integration.conftest import command, run, unmeasured, write_study
from tests.recorded import timeless
from trainers.loop import fit
from trainers.origin import Origin
from trainers.ranks import Ranks
from trainers.records import read_records

pytestmark = pytest.mark.ray

EPOCHS, BRANCH = 20, 15  # DER of a multi-step method acts from three quarters on
POINTS = [{"method.name": "sat_der", "attack.epsilon": "16/255", "method.regularizer.beta": beta} for beta in (1, 10)]
SECTIONS: dict[str, object] = {
    "experiment": {"epochs": EPOCHS, "method": "sat", "attack": {"steps": 1}},
    "space": {
        "method.name": ["sat", "sat_der"],
        "method.beta": None,
        "method.regularizer.beta": {"low": 0.1, "high": 10, "log": True, "when": {"method.name": "sat_der"}},
        "method.regularizer.gamma": {"low": 0.0, "high": 0.5, "when": {"method.name": "sat_der"}},
    },
    "search": {"trials": 2, "start": POINTS, "sampler": "random", "share_prefix": True},
    "confirm": {"top": 0},
    "resources": {"concurrent_trials": 1},
}


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("sweep", "tiny.yaml"),
        cwd=folder, env=unmeasured(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def epochs_of(folder: Path, trial: int) -> int:
    return len(read_records(folder / "runs" / "tiny" / "trials" / f"{trial:04d}"))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"epoch_{EPOCHS - 1:04d}" / "model.safetensors")


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], str, str]:
    """What `timeout` does in the first trial, kill -9 in the second, then to the end."""
    folder = tmp_path_factory.mktemp("survived")
    write_study(folder, **SECTIONS)
    first = start(folder)
    wait_while(first, (folder / "runs" / "tiny" / "journal.jsonl").exists, "the study's journal")
    second_driver = run("sweep", "tiny.yaml", cwd=folder, measured=False)
    wait_while(first, lambda: epochs_of(folder, 0) >= 2, "two epochs")
    os.killpg(first.pid, signal.SIGTERM)
    output, errors = first.communicate(timeout=300)
    assert first.returncode == 130, output + errors
    second = start(folder)
    wait_while(second, lambda: epochs_of(folder, 1) > BRANCH, "an epoch after the branch")
    os.kill(second.pid, signal.SIGKILL)
    second.communicate()
    last = run("resume", "runs/tiny", cwd=folder, measured=False)
    assert last.returncode == 0, last.stdout + last.stderr
    return folder, second_driver, output + errors, last.stdout


Survived = tuple[Path, subprocess.CompletedProcess[str], str, str]


def test_a_signal_to_the_process_group_ends_with_the_command_that_resumes(survived: Survived) -> None:
    _, _, said, _ = survived
    assert said.rstrip().endswith("resume with: orchestrator resume runs/tiny")
    assert "Traceback" not in said


def test_a_second_driver_of_a_running_study_is_refused(survived: Survived) -> None:
    _, second_driver, _, _ = survived
    assert second_driver.returncode == 2
    assert "another process is running this study" in second_driver.stderr


def test_every_trial_ends_bit_for_bit_as_if_never_interrupted(survived: Survived, tmp_path: Path) -> None:
    journal = open_study_folder(survived[0] / "runs" / "tiny")
    assert [(run.trial, run.state) for run in journal.runs()] == [(0, "complete"), (1, "complete")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for trial in journal.runs():
            fresh = tmp_path / trial.key
            list(fit(trial.experiment, fresh, ranks=Ranks.current("cpu")))
            assert timeless(trial.records) == timeless(read_records(fresh))
            assert [record.epoch for record in trial.records] == list(range(EPOCHS))
            ours = weights(trial.folder)
            assert all(torch.equal(ours[name], value) for name, value in weights(fresh).items())
    finally:
        torch.set_num_threads(threads)


def test_the_second_trial_trained_what_differs_alone_and_says_so(survived: Survived) -> None:
    first, second = open_study_folder(survived[0] / "runs" / "tiny").runs()
    assert (first.origin, second.origin) == (None, Origin("prefix", "trial-0000", BRANCH))
    assert second.records[:BRANCH] == first.records[:BRANCH]
    assert timeless(first.records)[BRANCH] != timeless(second.records)[BRANCH]
    assert f"Begun from a shared prefix: 1 run; {BRANCH} of {2 * EPOCHS} epochs" in survived[3]


def test_the_budget_is_a_total(survived: Survived) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = open_study_folder(survived[0] / "runs" / "tiny")
    stored = optuna.load_study(study_name="tiny", storage=storage_url(read_study(journal.folder), journal.folder))
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE", "COMPLETE"]
    assert [trial.user_attrs["attempts"] for trial in stored.trials] == [2, 2]


def test_mlflow_holds_every_run_and_every_epoch_exactly_once(survived: Survived) -> None:
    folder = survived[0]
    journal = open_study_folder(folder / "runs" / "tiny")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("adversarial-training")
    tracked = client.search_runs([experiment.experiment_id])
    identities = [entry.data.tags[RUN_TAG] for entry in tracked]
    assert sorted(identities) == sorted(
        {read_identity(journal.folder), *(f"{read_identity(journal.folder)}/{r.key}" for r in journal.runs())}
    )
    for entry in tracked:
        assert entry.info.status == "FINISHED"
        if "mlflow.parentRunId" in entry.data.tags:
            steps = [metric.step for metric in client.get_metric_history(entry.info.run_id, "val/pgd10_accuracy")]
            assert sorted(steps) == list(range(EPOCHS))
            branched = entry.data.tags["trial"] == "1"
            assert entry.data.tags.get("origin.source") == ("trial-0000" if branched else None)
