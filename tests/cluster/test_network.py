"""Studies on a cluster of several nodes, each in a network namespace of its own, while links and nodes fail."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.cluster.network import DEATH_SECONDS, GCS_PORT, HEAD_ADDRESS, Network, silence
from tests.faults.conftest import shaken_study
from tests.faults.laboratory import TRIAL_ACTOR, Injection, Laboratory
from tests.faults.undisturbed import (
    Train,
    assert_same_run,
    assert_tracked_once,
    train_here,
    train_on_two_ranks,
    undisturbed,
)
from tests.integration.conftest import command

ROOT = Path(__file__).parents[2]

ACTOR_OF_ONE = (TRIAL_ACTOR, "ray::ProcessSlot")  # at work, and between two steps

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


class ClusterLaboratory(Laboratory):
    """A study whose driver runs on the head of a cluster that outlives it."""

    def __init__(self, folder: Path, content: dict[str, Any], network: Network) -> None:
        super().__init__(folder, content)
        self._head = network.head

    def command(self, *words: str) -> list[str]:
        """On the head node, which is where a driver of a study belongs."""
        return self._head.command(*super().command(*words, "--address", f"{HEAD_ADDRESS}:{GCS_PORT}"))

    def environment(self) -> dict[str, str]:
        """With the cluster's token."""
        return self._head.environment()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with tempfile.TemporaryDirectory(prefix="orc") as folder, Network(Path(folder), workers=2) as network:
        yield network


def check(laboratory: ClusterLaboratory, train: Train) -> None:
    """The study has ended as an undisturbed one does, and MLflow knows every epoch once."""
    code, said = laboratory.end()
    reference = undisturbed(laboratory.study, laboratory.folder / "reference", train)
    assert code == any(run.state == "failed" for run in reference.runs()), said
    for ours, theirs in zip(laboratory.journal.runs(), reference.runs(), strict=True):
        assert ours.values == theirs.values
        assert_same_run(ours, theirs)
    client = MlflowClient(tracking_uri=f"sqlite:///{laboratory.folder}/mlflow.db")
    assert_tracked_once(client, laboratory.journal)
    assert not any(injection.epochs_doubled for injection in laboratory.injections)


def test_trials_across_two_nodes_survive_a_cut_link_and_a_dead_node(
    network: Network, tmp_path: Path, injections: list[Injection]
) -> None:
    content = shaken_study("across", 4, 2, sampler="random", seed=5)
    first, second = network.workers
    with ClusterLaboratory(tmp_path, content, network) as laboratory:
        laboratory.start()
        laboratory.wait_for_epoch(0, 1)
        with laboratory.fault("link cut, shorter than the death of a node"), network.cut(second):
            silence(DEATH_SECONDS / 3)
        laboratory.wait_for_a_new_epoch()
        laboratory.wait_for_epoch(1, 1)
        with laboratory.fault("link cut, longer than the death of a node"):
            with network.cut(second):
                silence(2 * DEATH_SECONDS)
            # A node that was declared dead ends when it hears of it, and is started again.
            laboratory.wait_for_a_new_epoch()
        laboratory.wait_for_epoch(2, 1)
        with laboratory.fault("node killed and started again"):
            first.kill_raylet()
            laboratory.wait_for_a_new_epoch()
        laboratory.wait_for_epoch(3, 1)
        laboratory.kill_driver()
        with laboratory.fault("driver killed, resumed on the cluster that it left"):
            laboratory.start()
            laboratory.wait_for_a_new_epoch()
        injections += laboratory.injections
        check(laboratory, train_on_two_ranks)


def test_a_trial_of_a_node_that_is_cut_off_goes_on_on_another_and_is_recorded_once(
    network: Network, tmp_path: Path, injections: list[Injection]
) -> None:
    content = shaken_study("alone", 2, 1, sampler="random", seed=6)
    with ClusterLaboratory(tmp_path, content, network) as laboratory:
        laboratory.start()
        laboratory.wait_for_epoch(0, 1)
        (host,) = (machine for machine in network.workers if machine.runs(*ACTOR_OF_ONE))
        with laboratory.fault("node of a trial cut off"), network.cut(host):
            silence(2 * DEATH_SECONDS)
            laboratory.wait_for_a_new_epoch()
        injections += laboratory.injections
        check(laboratory, train_here)


def test_the_doctor_names_the_node_at_fault_and_a_sweep_is_refused(network: Network, tmp_path: Path) -> None:
    head, (other, odd) = network.head, network.workers
    code = tmp_path / "code"
    for package in ("orchestrator", "search_spaces", "trainers"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "trainers" / "energy.py").write_text("# another revision\n")
    storage = tmp_path / "shared"
    storage.mkdir()
    odd.stop()
    # A file system of its own where the shared one should be, other code, and no way to the other worker.
    unshared = ("sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(storage))
    subprocess.run(odd.command("ip", "route", "add", "blackhole", other.address), check=True)
    odd.start(*unshared, PYTHONPATH=str(code))
    odd.wait()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        address = ["--address", f"{HEAD_ADDRESS}:{GCS_PORT}", "--storage", str(storage)]
        return subprocess.run(
            head.command(*command(*words, *address)),
            cwd=tmp_path, env=head.environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    examined = run("doctor", "quickstart")
    assert examined.returncode == 3, examined.stdout + examined.stderr
    fails = [line.split(maxsplit=2)[1:] for line in examined.stdout.splitlines() if line.startswith("fails")]
    assert [name for name, _ in fails] == ["versions", "shared", "network"], examined.stdout
    for _, fault in fails:
        assert fault.startswith(f"{odd.address}: ")
    assert "install the same revision there" in fails[0][1]
    refused = run("sweep", "quickstart")
    assert refused.returncode == 3, refused.stdout + refused.stderr
    for name, fault in fails[:2]:
        assert fault.partition(";")[0].split(storage.name)[0] in refused.stderr, name
    assert not list(storage.rglob("records.jsonl"))
