"""A node that is lost to the others, or that differs from them, each in a network namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.laboratory import ClusterLaboratory, check
from tests.cluster.network import DEATH_SECONDS, GCS_PORT, HEAD_ADDRESS, Network, silence
from tests.faults.conftest import shaken_study
from tests.faults.laboratory import TRIAL_ACTOR, Injection
from tests.faults.undisturbed import train_here, undisturbed
from tests.integration.conftest import command

ROOT = Path(__file__).parents[2]

ACTOR_OF_ONE = (TRIAL_ACTOR, "ray::ProcessSlot")  # at work, and between two steps

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


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
        check(laboratory, undisturbed(laboratory.study, tmp_path / "reference", train_here))


def test_the_doctor_names_the_node_at_fault_and_a_sweep_is_refused(network: Network, tmp_path: Path) -> None:
    head, (other, odd) = network.head, network.workers
    code = tmp_path / "code"
    for package in ("orchestrator", "search_spaces", "trainers"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "trainers" / "energy.py").write_text("# another revision\n")
    storage = tmp_path / "shared"
    storage.mkdir()
    # Of the node that was cut off above nobody knows when it is back.
    for machine in network.workers:
        machine.stop()
    # A file system of its own where the shared one should be, other code, and no way to the other worker.
    unshared = ("sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(storage))
    subprocess.run(odd.host.command("ip", "route", "add", "blackhole", other.host.address), check=True)
    other.start()
    odd.start(*unshared, PYTHONPATH=str(code))
    for machine in network.workers:
        machine.wait()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        address = ["--address", f"{HEAD_ADDRESS}:{GCS_PORT}", "--storage", str(storage)]
        return subprocess.run(
            head.host.command(*command(*words, *address)),
            cwd=tmp_path, env=head.environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    examined = run("doctor", "quickstart")
    assert examined.returncode == 3, examined.stdout + examined.stderr
    fails = [line.split(maxsplit=2)[1:] for line in examined.stdout.splitlines() if line.startswith("fails")]
    assert [name for name, _ in fails] == ["versions", "shared", "network"], examined.stdout
    for _, fault in fails:
        assert fault.startswith(f"{odd.host.address}: ")
    assert "install the same revision there" in fails[0][1]
    refused = run("sweep", "quickstart")
    assert refused.returncode == 3, refused.stdout + refused.stderr
    for name, fault in fails[:2]:
        assert fault.partition(";")[0].split(storage.name)[0] in refused.stderr, name
    assert not list(storage.rglob("records.jsonl"))
