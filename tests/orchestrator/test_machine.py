"""CPUs are those that a process may use in full, whatever limits it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.host import machine
from tests.integration.conftest import environment


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "350000 100000"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        # The least of all that are around it counts.
        ("0::/job/step\n", {"job/cpu.max": "200000 100000", "job/step/cpu.max": "max 100000"}, 2),
        ("0::/job/step\n", {"other/cpu.max": "200000 100000"}, 8),
        ("3:cpuset,cpu:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        (None, {"cpu.max": "200000 100000"}, 2),
    ],
)  # fmt: skip
def test_a_quota_counts_as_the_affinity_does(
    membership: str | None, files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / "cgroups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroups" / name).write_text(content + "\n")
    if membership is not None:
        (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.usable_cpus() == cpus


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, 3), ("", 0), ("-1", 0), ("0", 1), ("GPU-12, GPU-34", 2), ("0,1,2,3", 3)]
)
def test_gpus_are_counted_as_nvml_does(visible: str | None, gpus: int, nvml: Path) -> None:
    script = "from orchestrator.host.machine import visible_gpus; print(visible_gpus())"
    variables = environment(LD_LIBRARY_PATH=str(nvml), PYTHONPATH=str(Path(__file__).parents[2]))
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        variables["CUDA_VISIBLE_DEVICES"] = visible
    counted = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert counted.stdout == f"{gpus}\n", counted.stderr


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a library that counts three GPUs, whatever /proc holds: WSL 2 has no folder of them there."""
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(
        "int nvmlInit_v2(void) { return 0; }\nint nvmlShutdown(void) { return 0; }\n"
        "int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }\n"
    )
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    return folder
