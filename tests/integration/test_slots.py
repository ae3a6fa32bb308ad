"""A slot takes one run after the other: none may notice that another was there before it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from orchestrator.cluster import connection
from orchestrator.host.interrupt import Interrupt
from orchestrator.records.study_folder import create_study_folder
from orchestrator.study.progress import StudyView
from search_spaces.study import Resources, parse_study
from tests.integration.conftest import STUDY, environment
from trainers.config import Experiment, parse
from trainers.records import read_records

pytestmark = pytest.mark.ray


def experiments() -> list[Experiment]:
    """Two runs that would leave different traces in a process: method, batch-norm mode, seed."""
    raw = {**STUDY["experiment"], "epochs": 2}
    return [
        parse({**raw, "method": "fgsm_rs_der", "seed": 3}),
        parse({**raw, "method": "weat_adv", "seed": 4, "attack": {"epsilon": 0.1, "steps": 2}}),
    ]


def train_fresh(experiment: Experiment, folder: Path, workers: int) -> None:
    """The same run in processes of its own, without Ray."""
    folder.mkdir(parents=True)
    file = folder / "input.yaml"
    file.write_text(yaml.safe_dump(experiment.to_dict()))
    start = [sys.executable, "-m"]
    if workers > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m"]
    arguments = ["trainers", str(file), "--run-dir", str(folder / "run"), "--threads", "1"]
    result = subprocess.run([*start, *arguments], env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "epoch_0001" / "model.safetensors")


@contextmanager
def planted_credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_PASSWORD", "planted")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "planted")
        yield


@pytest.fixture(scope="module", params=[1, 2])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Both runs, one after the other, in one slot of 1 or 2 workers."""
    workers = request.param
    folder = tmp_path_factory.mktemp(f"slot{workers}")
    resources = Resources(workers=workers, concurrent_trials=1)
    study = parse_study({**STUDY, "resources": resources.model_dump()})
    journal = create_study_folder(folder / "study", study)
    with planted_credentials(), connection.connect(None, trial_slots=1) as capacity:
        from orchestrator.slots.messages import Job, job_for
        from orchestrator.study import confirm, tuning
        from orchestrator.study.session import Session

        # What a worker process inherits from the driver: everything but its credentials, planted above.
        inherited = ray.get(ray.remote(lambda: dict(os.environ)).options(num_cpus=0).remote())
        assert inherited["OMP_WAIT_POLICY"] == "PASSIVE"
        assert not {"MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"} & set(inherited)

        session = Session(study, journal, capacity, StudyView(Console(quiet=True)), Interrupt(print))
        jobs: list[Job] = [
            job_for(f"run{i}", experiment, folder / f"run{i}", resources) for i, experiment in enumerate(experiments())
        ]
        tuning.run_on_slots(session, confirm._Jobs(jobs, session), resources, "resources")
        assert not ray.util.placement_group_table() or all(
            group["state"] == "REMOVED" for group in ray.util.placement_group_table().values()
        )
    return folder, workers


@pytest.mark.parametrize("index", [0, 1])
def test_runs_in_one_slot_equal_runs_in_fresh_processes_bit_for_bit(
    trained: tuple[Path, int], index: int, tmp_path: Path
) -> None:
    folder, workers = trained
    train_fresh(experiments()[index], tmp_path / "fresh", workers)
    here, there = weights(folder / f"run{index}"), weights(tmp_path / "fresh" / "run")
    assert all(torch.equal(here[name], there[name]) for name in there)
    for ours, theirs in zip(
        read_records(folder / f"run{index}"), read_records(tmp_path / "fresh" / "run"), strict=True
    ):
        timed = ("seconds", "images_per_second")
        assert {k: v for k, v in ours.metrics.items() if not k.endswith(timed)} == {
            k: v for k, v in theirs.metrics.items() if not k.endswith(timed)
        }
