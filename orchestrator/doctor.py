"""`orchestrator doctor`: look at everything a study needs and say what is missing, one line each."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from orchestrator import tracking
from orchestrator.cluster import address_in_use, connect, local_capacity
from search_spaces.study import parse_study
from trainers import catalog
from trainers.config import parse
from trainers.data.availability import DIRECTORY_VARIABLE, check_available
from trainers.problems import InvalidInput

_LEAST_FREE_GIGABYTES = 1.0


def examine(address: str | None, storage: Path, data_dir: Path | None, console: Console) -> bool:
    """Run all checks; returns whether everything that is required works. Missing data sets are only mentioned."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("Python", _python),
        ("torch", _torch),
        ("storage", lambda: _storage(storage)),
        ("MLflow", _mlflow),
        ("Ray", lambda: _ray(address)),
    ]
    healthy = True
    for name, check in checks:
        try:
            console.print(f"[green]ok[/green]    {name:<8} {check()}")
        except Exception as error:
            healthy = False
            console.print(f"[red]fails[/red] {name:<8} {error}")
    for name in catalog.DATASETS:
        console.print(_data(name, data_dir))
    return healthy


def _python() -> str:
    return f"{platform.python_version()} on {platform.platform()}, {local_capacity().cpus} CPUs"


def _torch() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    x = torch.randn(8, 8, requires_grad=True)
    torch.autograd.grad((x @ x).sum(), x)
    return f"{torch.__version__}, {', '.join(gpus) if gpus else 'no GPU: runs on CPU'}"


def _storage(storage: Path) -> str:
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=storage) as file:
        file.write(b"written")
        file.flush()
        os.fsync(file.fileno())
    free = shutil.disk_usage(storage).free / 1e9
    if free < _LEAST_FREE_GIGABYTES:
        raise RuntimeError(f"{storage} has {free:.1f} GB free; at least {_LEAST_FREE_GIGABYTES:g} GB are needed")
    return f"{storage.absolute()} can be written, {free:.0f} GB free"


def _mlflow() -> str:
    uri = tracking.tracking_uri(parse_study({"name": "doctor"}))
    tracking.check_reachable(uri)
    import mlflow

    return f"{mlflow.__version__}, {uri} can be used"


def _ray(address: str | None) -> str:
    with connect(address, trial_slots=1) as capacity:
        import ray

        # One task proves more than an address: a worker starts, imports our code and answers.
        answer = ray.get(ray.remote(platform.python_version).options(num_cpus=1).remote(), timeout=60)
        where = address_in_use(address) or "private"
        return f"{ray.__version__} ({where}): {capacity.cpus} CPUs, {capacity.gpus:g} GPUs, workers run Python {answer}"


def _data(name: str, data_dir: Path | None) -> str:
    directory = {"directory": str(data_dir.absolute())} if data_dir else {}
    try:
        check_available(parse({"data": {"name": name, **directory}}).data)
    except InvalidInput as error:
        return f"[yellow]absent[/yellow] {name:<7} {error} (only needed for studies on it; see {DIRECTORY_VARIABLE})"
    return f"[green]ok[/green]    {name:<8} {catalog.DATASETS[name].about}"
