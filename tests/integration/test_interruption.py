"""A study that is killed or interrupted goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from orchestrator.journal import Journal
from orchestrator.tracking import RUN_TAG
from tests.integration.conftest import command, environment, run, write_study
from trainers.records import read_records

pytestmark = pytest.mark.ray

SECTIONS = {
    "experiment": {"epochs": 6},
    "search": {"trials": 2, "start": [], "sampler": "random"},
    "confirm": {"top": 0},
    "resources": {"concurrent_trials": 1},
}


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("sweep", "tiny.yaml"),
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the study did not get that far"
        time.sleep(0.05)


def epochs_of(folder: Path, trial: int) -> int:
    return len(read_records(folder / "runs" / "tiny" / "trials" / f"{trial:04d}"))


def outcome(folder: Path) -> list[tuple[object, ...]]:
    """What must not depend on interruptions: proposals, states, objectives, every metric but the clocks, weights."""
    found: list[tuple[object, ...]] = []
    for trial in Journal.open(folder / "runs" / "tiny").runs():
        timed = ("seconds", "images_per_second")
        metrics = [{k: v for k, v in r.metrics.items() if not k.endswith(timed)} for r in trial.records]
        weights = load_file(trial.folder / "checkpoints" / "epoch_0005" / "model.safetensors")
        numbers = torch.cat([tensor.double().flatten() for tensor in weights.values()]).tolist()
        found.append((trial.values, trial.state, trial.objectives, metrics, numbers))
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_study(folder, **SECTIONS)
    result = run("sweep", "tiny.yaml", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return outcome(folder)


def assert_tracked_once(folder: Path) -> None:
    journal = Journal.open(folder / "runs" / "tiny")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("adversarial-training")
    tracked = client.search_runs([experiment.experiment_id])
    identities = [entry.data.tags[RUN_TAG] for entry in tracked]
    assert sorted(identities) == sorted({journal.identity, *(f"{journal.identity}/{r.key}" for r in journal.runs())})
    for entry in tracked:
        if "mlflow.parentRunId" in entry.data.tags:
            steps = [metric.step for metric in client.get_metric_history(entry.info.run_id, "val/pgd10_accuracy")]
            assert sorted(steps) == list(range(6))
        assert entry.info.status == "FINISHED"


def test_ctrl_c_finishes_the_epoch_and_says_how_to_resume(
    tmp_path: Path, uninterrupted: list[tuple[object, ...]]
) -> None:
    write_study(tmp_path, **SECTIONS)
    process = start(tmp_path)
    wait_until(lambda: epochs_of(tmp_path, 0) >= 2, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output + errors
    assert output.rstrip().endswith("resume with: orchestrator resume runs/tiny")
    assert "Traceback" not in output + errors
    assert epochs_of(tmp_path, 0) >= 2
    resumed = run("resume", "runs/tiny", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert outcome(tmp_path) == uninterrupted
    assert_tracked_once(tmp_path)


def test_a_killed_driver_loses_nothing_and_doubles_nothing(
    tmp_path: Path, uninterrupted: list[tuple[object, ...]]
) -> None:
    write_study(tmp_path, **SECTIONS)
    process = start(tmp_path)
    wait_until(lambda: epochs_of(tmp_path, 1) >= 1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.communicate()
    resumed = run("sweep", "tiny.yaml", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert outcome(tmp_path) == uninterrupted
    assert_tracked_once(tmp_path)


def test_two_drivers_of_one_study_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path, **SECTIONS)
    process = start(tmp_path)
    try:
        wait_until(lambda: (tmp_path / "runs" / "tiny" / "lock").exists(), process)
        time.sleep(0.5)
        second = run("sweep", "tiny.yaml", cwd=tmp_path)
        assert second.returncode == 2
        assert "another process is running this study" in second.stderr
    finally:
        process.kill()
        process.communicate()
