"""What nodes must have in common: compared as values, and looked at through the file system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from orchestrator.cluster import connection
from orchestrator.cluster.node_probe import contents, unseen, versions, write
from orchestrator.cluster.nodes import data_files, differences, least_skew
from orchestrator.commands import doctor
from orchestrator.host.interfaces import interface_of, use_interface_of
from tests.faults.processes import wait_until
from trainers.config import parse


def test_every_version_that_differs_is_named_with_what_to_do() -> None:
    here = {"Python": "3.11.7", "torch": "2.15.0", "this package": "code 12", "methods of other packages": ""}
    there = {**here, "torch": "2.14.0", "methods of other packages": "toy 1.0"}
    assert differences("10.0.0.2", here, here) == []
    assert differences("10.0.0.2", here, there) == [
        "10.0.0.2: torch 2.14.0, here 2.15.0; install the same requirements.lock there",
        "10.0.0.2: methods of other packages toy 1.0, here none; install the same ones there",
    ]


def test_our_own_code_is_compared_by_content(tmp_path: Path) -> None:
    script = (
        "from orchestrator.cluster.node_probe import versions; print(versions(['nothing-of-this-name'], ['p'], 'g'))"
    )

    def seen() -> str:
        path = f"{tmp_path}:{Path(__file__).parents[2]}"
        run = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        return run.stdout

    assert "'nothing-of-this-name': 'missing', 'this package': 'missing'" in seen()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text("x = 1\n")
    first = seen()
    (tmp_path / "p" / "notes.txt").write_text("not code")
    assert seen() == first
    (tmp_path / "p" / "__init__.py").write_text("x = 2\n")
    assert seen() != first


@pytest.mark.parametrize(
    ("readings", "skew"),
    [
        ([(100.0, 100.2, 100.5)], 0.0),
        ([(100.0, 110.0, 108.0)], 2.0),
        ([(100.0, 110.0, 108.0), (200.0, 209.0, 200.1)], 8.9),
        ([(100.0, 90.0, 101.0)], -10.0),
        ([], 0.0),
    ],
)
def test_a_clock_is_off_by_what_no_delay_of_the_answer_explains(
    readings: list[tuple[float, float, float]], skew: float
) -> None:
    assert least_skew(readings) == pytest.approx(skew)


def test_data_are_compared_by_size_and_both_ends(tmp_path: Path) -> None:
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    content = bytearray(1 << 18)
    one.write_bytes(content)
    content[-1] = 1
    two.write_bytes(content)
    found = contents([str(one), str(two), str(tmp_path / "three.npy")])
    assert found[str(one)] != found[str(two)]
    assert found[str(tmp_path / "three.npy")] == ""
    two.write_bytes(one.read_bytes())
    assert contents([str(one)])[str(one)] == contents([str(two)])[str(two)]


def test_a_file_of_another_node_is_seen_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.node_probe._PATIENCE_SECONDS", 0.0)
    assert write(str(tmp_path), "a") is None
    assert unseen(str(tmp_path), ["a", "b"]) == ["b"]
    assert "No such file" in str(write(str(tmp_path / "absent"), "a"))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux asks its interfaces another way")
def test_groups_talk_over_the_interface_of_an_address_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    use_interface_of("127.0.0.1")
    assert (os.environ.pop("GLOO_SOCKET_IFNAME"), os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "ib0")
    use_interface_of("192.0.2.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_the_packages_of_this_process_are_found() -> None:
    found = versions(["numpy"], ["orchestrator", "trainers"], "no.group")
    assert found["this package"].startswith("code ")
    assert found["numpy"][0].isdigit()


def test_what_a_node_needs_is_looked_for_where_training_will_read_it() -> None:
    extra = {"extra": "generated.npz", "extra_fraction": 0.5, "directory": "/shared/data"}
    subset = {"subset": {"file": "/shared/subsets.json", "name": "random", "treatment": "drop", "sha256": "0"}}
    more = ("/shared/subsets.json", "/shared/data/generated.npz")
    assert data_files(parse({"data": extra | subset}).data) == [more]
    raw, decoded = data_files(parse({"data": {"name": "cifar10", **extra, **subset}}).data)
    assert raw == ("/shared/data/cifar-10-batches-py", *more)
    assert (decoded[0], decoded[-2:]) == ("/shared/data/orchestrator-cache/cifar10/train_images.npy", more)


def test_a_sum_uses_the_backend_that_training_will_use_whatever_the_machine_has() -> None:
    script = (
        "import os; from orchestrator.cluster.node_probe import all_reduce, free_port\n"
        "def group(gpu): return all_reduce('127.0.0.1', '127.0.0.1', free_port(), 0, 1, gpu, 20.0)\n"
        "assert group(False) is None\n"
        "assert 'NCCL' in group(True) or 'CUDA' in group(True)\n"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPUs are made up")
def test_gpus_that_are_taken_are_busy_and_all_others_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "visible_gpus", lambda: 2)
    with connection.connect(None, trial_slots=1):
        import ray

        from orchestrator.cluster import nodes

        class Holder:
            def works(self) -> bool:
                return True

        (node,) = found = nodes.living_nodes()
        assert nodes.taken_gpus(found) == {}
        assert nodes.gpu_faults(found) == [f"{node.address}: torch sees 0 of 2 GPUs; look at nvidia-smi there"]
        holder = ray.remote(num_gpus=0.5)(Holder).remote()
        assert ray.get(holder.works.remote(), timeout=60)
        wait_until(lambda: nodes.taken_gpus(found) == {node: 0.5}, "Ray to say what is taken")


def test_the_doctor_does_not_call_it_a_fault_that_gpus_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor._Report(Console())
    report.busy("GPUs", "10.0.0.2: 3 of 8 are taken")
    assert report.healthy
    assert capsys.readouterr().out == "busy   GPUs     10.0.0.2: 3 of 8 are taken\n"
