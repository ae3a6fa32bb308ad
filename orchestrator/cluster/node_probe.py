"""What is executed on a node to examine it. Sent there as it stands: the node may lack this package, or have another.

So it uses nothing but the standard library, torch where that is what is examined, and what is sent along.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.host.interfaces import use_interface_of

_SAMPLE = 1 << 16  # bytes of a file that are looked at, at either end
_PATIENCE_SECONDS = 10.0  # shared storage may show a new file late


def versions(packages: Sequence[str], ours: Sequence[str], group: str) -> dict[str, str]:
    """What must be equal on all nodes: Python, some distributions, our own code by content, what extends it."""
    found = {"Python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    found["this package"] = _code(ours)
    methods = importlib.metadata.entry_points(group=group)
    found["methods of other packages"] = ", ".join(sorted(f"{m.value} {m.dist and m.dist.version}" for m in methods))
    return found


def _code(packages: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            return "missing"
        folder = Path(spec.submodule_search_locations[0])
        for file in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
            digest.update(f"{name}/{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return f"code {digest.hexdigest()[:12]}"


def clock() -> float:
    """Unix time here."""
    return time.time()


def write(folder: str, name: str) -> str | None:
    """Leave a file in a folder; returns what went wrong."""
    try:
        Path(folder, name).write_text(name)
    except OSError as error:
        return f"can't write into {folder}: {error.strerror}"
    return None


def unseen(folder: str, names: Sequence[str]) -> list[str]:
    """Which of these files, written on other nodes, can't be read here."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    left = list(names)
    while True:
        if os.path.isdir(folder):
            os.listdir(folder)  # a network file system looks again
        left = [name for name in left if not _holds(Path(folder, name))]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _holds(file: Path) -> bool:
    try:
        return file.read_text() == file.name
    except OSError:
        return False


def contents(paths: Sequence[str]) -> dict[str, str]:
    """What is at these paths, in short: of a file its size and both ends, of a folder its entries; "" for nothing."""
    return {path: _content(Path(path)) for path in paths}


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            digest.update("\n".join(sorted(os.listdir(path))).encode())
            files = sorted(file for file in path.iterdir() if file.is_file())
        else:
            files = [path]
        for file in files:
            size = file.stat().st_size
            digest.update(str(size).encode())
            with open(file, "rb") as stream:
                digest.update(stream.read(_SAMPLE))
                stream.seek(max(size - _SAMPLE, 0))
                digest.update(stream.read())
    except OSError:
        return ""
    return digest.hexdigest()


def unusable_gpus(count: int) -> list[str]:
    """What keeps torch from computing on each of the GPUs that are reserved for this process."""
    import torch

    seen = torch.cuda.device_count()
    wrong = [] if seen >= count else [f"torch sees {seen} of {count} GPUs"]
    for index in range(seen):
        try:
            torch.ones(8, device=f"cuda:{index}").sum().item()
        except RuntimeError as error:
            wrong.append(f"GPU {index}: {str(error).partition(chr(10))[0]}")
    return wrong


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def all_reduce(own: str, first: str, port: int, rank: int, size: int, gpu: bool, seconds: float) -> str | None:
    """Sum the ranks with the others, over NCCL on a GPU or over gloo; returns what went wrong.

    `own` and `first` are the addresses of this node and of rank 0's.
    """
    import torch
    import torch.distributed as dist

    use_interface_of(own)
    try:
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            init_method=f"tcp://{first}:{port}",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=seconds),
        )
        value = torch.tensor([float(rank)], device="cuda" if gpu else "cpu")
        dist.all_reduce(value)
        if value.item() != size * (size - 1) / 2:
            return f"the sum over all ranks came out as {value.item():g}"
    except Exception as error:
        return str(error).partition("\n")[0]
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return None
