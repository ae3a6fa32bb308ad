"""Work on networks in pieces that do not know of one another: here one after the other, or as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from orchestrator.host.devices import reserved_device
from orchestrator.host.shared_files import require_files
from trainers.problems import InvalidInput

if TYPE_CHECKING:
    import torch
    from torch import nn

    from orchestrator.cluster.connection import Capacity


@dataclass(frozen=True)
class Task:
    """`work(model, device)` with the model that `load` gives, on the GPU if there is one; returns what to say of it.

    Both are sent to Ray workers: a function of a module, with plain arguments. `work` writes `file`.
    """

    name: str
    file: Path
    load: Callable[[], nn.Module]
    work: Callable[[nn.Module, torch.device], str]


def run_tasks(tasks: Sequence[Task], *, address: str | None, threads: int | None, console: Console) -> None:
    """Run all, in this process or with `address` on Ray, one line for each that ends.

    `threads` are those of a task; without, as many as torch takes here, and one on Ray. Raises UnfitCluster before
    anything is computed if nodes differ or do not see the folder of the files, FileNotFoundError for a file that a node
    has written and that does not appear here.
    """
    if not tasks:
        return
    if address is None:
        _run_here(tasks, threads, console)
    else:
        _run_on_ray(tasks, address, threads or 1, console)


def _run_here(tasks: Sequence[Task], threads: int | None, console: Console) -> None:
    from trainers.ranks import Ranks
    from trainers.reporting import on_device

    if threads:
        import torch

        torch.set_num_threads(threads)
    device = Ranks.current().device
    console.print(f"{len(tasks)} tasks {on_device(device)}", soft_wrap=True)
    load, model = None, None
    for done, task in enumerate(tasks):
        with console.status(Text(f"{task.name} ({done} of {len(tasks)} done)")):
            if task.load is not load:
                load, model = task.load, task.load().to(device)
            assert model is not None
            said = task.work(model, device)
        _say(task.name, said, console)


def _run_on_ray(tasks: Sequence[Task], address: str, threads: int, console: Console) -> None:
    from orchestrator.cluster.connection import connect

    with connect(address, 1) as capacity:
        import ray

        gpus = 1 if capacity.gpus else 0
        _check_fits(capacity, threads, gpus)
        if not capacity.private:
            from orchestrator.cluster import nodes

            for folder in {task.file.parent for task in tasks}:
                nodes.require_alike(folder)
        remote = ray.remote(_run_there).options(num_cpus=threads, num_gpus=gpus, max_retries=2)
        _send_factories_along()
        # The weights of foreign models travel: once, not with every task.
        loads = {key: ray.put(load) for key, load in {id(task.load): task.load for task in tasks}.items()}
        pending = {remote.remote(loads[id(task.load)], task.work, threads, gpus): task.name for task in tasks}
        console.print(f"{len(tasks)} tasks on {capacity.cpus} CPUs, {threads} each", soft_wrap=True)
        while pending:
            (reference,), _ = ray.wait(list(pending), num_returns=1)
            name = pending.pop(reference)
            _say(name, ray.get(reference), console)
        require_files([task.file for task in tasks])


def _send_factories_along() -> None:
    """Models of the user's own code go to Ray workers with that code: no worker could import it."""
    from ray import cloudpickle

    from trainers.foreign.factory import FACTORY_MODULES

    for module in FACTORY_MODULES:
        cloudpickle.register_pickle_by_value(module)


def _check_fits(capacity: Capacity, threads: int, gpus: int) -> None:
    """Raise InvalidInput for more threads than any node has CPUs: Ray would wait for such a node, without a word."""
    places = [node.cpus for node in capacity.nodes if node.gpus >= gpus]
    largest = max(places, default=0)
    if threads > largest:
        what = "node with a GPU" if gpus else "node"
        raise InvalidInput.single(
            "--threads",
            f"{threads}: the largest {what} has {largest} CPUs; ask for fewer, or start a larger node first",
        )


def _run_there(
    load: Callable[[], nn.Module], work: Callable[[nn.Module, torch.device], str], threads: int, gpus: int
) -> str:
    import torch

    torch.set_num_threads(threads)
    device = reserved_device(gpus)
    return work(load().to(device), device)


def _say(name: str, said: str, console: Console) -> None:
    console.print(f"{name}{said and ': '}{said}", soft_wrap=True)
