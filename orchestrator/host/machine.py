"""What this machine offers a private Ray, counted once for the plan, for `doctor` and for Ray itself."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """The CPUs that this process may run on, and may use in full: the least of affinity and cgroup quotas."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([cpus, *map(int, _quotas())]), 1)


def visible_gpus() -> int:
    """The GPUs that NVML counts, and of them no more than CUDA_VISIBLE_DEVICES names; as Ray does it."""
    count = ctypes.c_uint(0)
    # Asked by hand: Ray takes a second to import, and the plan answers at once.
    with suppress(OSError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
            nvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count.value
    named = [part for part in visible.split(",") if part.strip() not in ("", "-1", "NoDevFiles")]
    return min(count.value, len(named))


def _quotas() -> list[float]:
    """CPUs granted by each cgroup around this process, of version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`)."""
    quotas = []
    for folder in _own_cgroups():
        for words in (_read(folder / "cpu.max"), _read(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")):
            with suppress(ValueError):  # no such file, or "max"
                quota, period = map(float, words)
                if quota > 0 and period > 0:
                    quotas.append(quota / period)
    return quotas


def _own_cgroups() -> list[Path]:
    """The folders of the cgroups that may limit this process's CPUs, from its own up to the root."""
    folders = [_CGROUPS, _CGROUPS / "cpu"]  # in a container often all that can be seen
    with suppress(OSError):
        for line in _MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                root = _CGROUPS / "cpu" if controllers else _CGROUPS
                own = root / path.lstrip("/")
                folders += [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return list(dict.fromkeys(folders))


def _read(*files: Path) -> list[str]:
    try:
        return [word for file in files for word in file.read_text().split()]
    except OSError:
        return []
