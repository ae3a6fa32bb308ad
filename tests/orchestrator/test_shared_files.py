"""What another node has written is waited for where storage shows it late, and named where it never comes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from orchestrator.cluster import connection
from orchestrator.cluster.tasks import Task, run_tasks
from orchestrator.host import shared_files
from orchestrator.host.interrupt import Interrupt
from orchestrator.host.shared_files import require_files
from orchestrator.study.endings import judge_run
from search_spaces.study import parse_study
from tests.orchestrator.curves import records
from trainers.records import append_record

CURVE = records([0.3, 0.4, 0.5], [-0.1, -0.1, -0.1])
STUDY = parse_study({"name": "late", "experiment": {"epochs": 3}})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_files, "_PATIENCE_SECONDS", 0.0)


def test_a_run_whose_last_record_comes_late_is_complete(tmp_path: Path) -> None:
    append_record(tmp_path, *CURVE[:2])
    late = threading.Timer(0.5, append_record, [tmp_path, CURVE[2]])
    late.start()
    report = {"epoch": 2, "done": True}
    outcome = judge_run(report, STUDY.experiment_for({}), tmp_path, STUDY, Interrupt(print))
    late.join()
    assert outcome is not None
    assert (outcome.state, outcome.objectives) == (
        "complete",
        tuple(CURVE[2].metrics[name] for name in STUDY.search.objectives),
    )


def test_a_run_that_did_not_come_to_its_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_files, "_PATIENCE_SECONDS", 1000.0)
    append_record(tmp_path, *CURVE[:2])
    outcome = judge_run({"epoch": 1, "done": False}, STUDY.experiment_for({}), tmp_path, STUDY, Interrupt(print))
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("failed", "it ended before its last epoch")


def test_a_file_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    late = threading.Timer(0.5, (tmp_path / "late").touch)
    late.start()
    require_files([tmp_path / "late"])
    assert (tmp_path / "late").exists()


@pytest.mark.ray
def test_a_task_whose_file_does_not_appear_names_it(tmp_path: Path, impatient: None) -> None:
    file = tmp_path / "shards" / "0.npz"
    task = Task("one", file, nn.Identity, lambda _model, _device: "")
    with pytest.raises(FileNotFoundError, match=rf"not seen here: it must lie on storage that all see: '{file}'"):
        run_tasks([task], address="local", threads=1, console=Console())


def test_the_nodes_are_looked_at_before_the_first_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cluster import nodes

    class _Joined:
        def __enter__(self) -> connection.Capacity:
            return connection.Capacity((connection.NodeCapacity(2, 0),), private=False)

        def __exit__(self, *_: object) -> None: ...

    def unfit(folder: Path) -> None:
        raise nodes.UnfitCluster(str(folder))

    monkeypatch.setattr(connection, "connect", lambda *_: _Joined())
    monkeypatch.setattr(nodes, "require_alike", unfit)
    task = Task("one", tmp_path / "shards" / "0.npz", nn.Identity, lambda _model, _device: "")
    with pytest.raises(nodes.UnfitCluster, match=f"{tmp_path}/shards"):
        run_tasks([task], address="HEAD:6379", threads=1, console=Console())
