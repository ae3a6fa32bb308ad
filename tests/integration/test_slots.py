"""What happens in slots: one run after the other, and none may notice that another was there before it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from orchestrator.cluster import connection
from orchestrator.cluster.connection import Capacity
from orchestrator.host.interrupt import Interrupt
from orchestrator.records.study_folder import create_study_folder
from orchestrator.slots import group_slot
from orchestrator.slots.mailbox import Mailbox
from orchestrator.study.progress import StudyView
from search_spaces.study import Resources, parse_study
from tests.integration import test_stopped_trials as stopped
from tests.integration.conftest import STUDY, unmeasured, write_study
from tests.recorded import timeless
from trainers.config import Experiment, parse
from trainers.records import read_records

pytestmark = pytest.mark.ray

PLANTED = {"MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"}


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
    result = subprocess.run([*start, *arguments], env=unmeasured(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "epoch_0001" / "model.safetensors")


@pytest.fixture(scope="module")
def capacity() -> Iterator[Capacity]:
    """One Ray for all, started by a process with credentials in its environment."""
    with pytest.MonkeyPatch.context() as patched:
        for name in PLANTED:
            patched.setenv(name, "planted")
        with connection.connect(None, trial_slots=1) as capacity:
            yield capacity


def test_a_process_of_ray_inherits_everything_but_credentials(capacity: Capacity) -> None:
    inherited = ray.get(ray.remote(lambda: dict(os.environ)).options(num_cpus=0).remote())
    assert inherited["OMP_WAIT_POLICY"] == "PASSIVE"
    assert not PLANTED & set(inherited)


@pytest.fixture(scope="module", params=[1, 2])
def trained(
    request: pytest.FixtureRequest, capacity: Capacity, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """Both runs, one after the other, in one slot of 1 or 2 workers."""
    from orchestrator.slots.messages import Job, job_for
    from orchestrator.study import confirm, tuning
    from orchestrator.study.session import Session

    workers = request.param
    folder = tmp_path_factory.mktemp(f"slot{workers}")
    resources = Resources(workers=workers, concurrent_trials=1)
    study = parse_study({**STUDY, "resources": resources.model_dump()})
    journal = create_study_folder(folder / "study", study)
    session = Session(study, journal, capacity, StudyView(Console(quiet=True)), Interrupt(print))
    jobs: list[Job] = [
        job_for(f"run{i}", experiment, folder / f"run{i}", resources) for i, experiment in enumerate(experiments())
    ]
    tuning.run_on_slots(session, confirm._Jobs(jobs, session), resources, "resources")
    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}
    return folder, workers


@pytest.mark.parametrize("index", [0, 1])
def test_runs_in_one_slot_equal_runs_in_fresh_processes_bit_for_bit(
    trained: tuple[Path, int], index: int, tmp_path: Path
) -> None:
    folder, workers = trained
    train_fresh(experiments()[index], tmp_path / "fresh", workers)
    here, there = weights(folder / f"run{index}"), weights(tmp_path / "fresh" / "run")
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert timeless(read_records(folder / f"run{index}")) == timeless(read_records(tmp_path / "fresh" / "run"))


def test_no_module_of_pytorch_keeps_the_process_group_in_which_it_was_imported(
    capacity: Capacity, tmp_path: Path
) -> None:
    """What keeps one is imported before there is one; the group then ends when it is ended."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from orchestrator.slots.process_group import GroupConfig

    def worker(_config: dict[str, Any]) -> None:
        import inspect

        import torch.distributed
        from torch.distributed.nn import functional

        import trainers.ranks  # noqa: F401 - as every worker of ours does

        assert torch.distributed.is_initialized()
        kept = inspect.signature(functional.broadcast).parameters["group"].default
        (tmp_path / f"rank{torch.distributed.get_rank()}").write_text(repr(kept))

    TorchTrainer(
        worker,
        train_loop_config={},
        torch_config=GroupConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1.0}),
        run_config=RunConfig(name="group", storage_path=str(tmp_path / "train")),
    ).fit()
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["None", "None"]


def test_a_group_of_workers_stops_within_one_epoch_and_takes_the_next_trial(capacity: Capacity, tmp_path: Path) -> None:
    from orchestrator.study.search import run_search
    from orchestrator.study.session import Session

    content = yaml.safe_load(write_study(tmp_path, **stopped.SECTIONS).read_text())
    study = parse_study({**content, "resources": {"workers": 2, "concurrent_trials": 1}})
    journal = create_study_folder(tmp_path / "study", study)
    run_search(Session(study, journal, capacity, StudyView(Console(quiet=True)), Interrupt(print)))
    first, second, third = journal.runs()
    assert [trial.state for trial in (first, second, third)] == ["stopped", "complete", "stopped"]
    assert len(second.records) == stopped.EPOCHS
    for trial in (first, third):
        # The group may be an epoch ahead of the decision, never two.
        assert stopped.onset(trial) + 1 <= len(trial.records) <= stopped.onset(trial) + 2
    groups = {(trial.folder / "placement_group").read_text() for trial in (first, second, third)}
    assert len(groups) == 1


def test_a_stopped_trial_waits_for_its_epoch_as_long_as_the_group_lives(
    capacity: Capacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_slot, "_POLL_SECONDS", 0.1)
    job, following = {"key": "a"}, {"key": "b"}
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote()
    ray.get([mailbox.start.remote(job), mailbox.next_job.remote()])
    halted, gone = threading.Event(), threading.Event()
    group = threading.Thread(target=gone.wait, daemon=True)
    group.start()
    slot = SimpleNamespace(_mailbox=mailbox, _group=group)

    def halt() -> None:
        group_slot.GroupSlot._halt(slot)  # type: ignore[arg-type]
        halted.set()

    threading.Thread(target=halt, daemon=True).start()
    assert not halted.wait(1)
    assert ray.get(mailbox.report.remote({"epoch": 0}))
    ray.get(mailbox.finish.remote({"done": True}))
    assert halted.wait(30)
    ray.get([mailbox.start.remote(following), mailbox.next_job.remote()])
    gone.set()
    group.join()
    group_slot.GroupSlot._halt(slot)  # type: ignore[arg-type]
