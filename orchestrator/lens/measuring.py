"""The one pass over all networks: every attack once on every image, kept by network, attack and range.

What is kept is found again by the network's weights and by the protocol, so a second call does what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orchestrator.lens.networks import Network
from trainers import catalog
from trainers.config import Data
from trainers.evaluation.result import Protocol
from trainers.problems import InvalidInput

if TYPE_CHECKING:
    from torch import nn

    from trainers.data.images import ImageSet
    from trainers.lens.points import Points

POINTS_FOLDER = "points"


@dataclass(frozen=True)
class Task:
    """What is missing of one network on one range of images: stages, each with the file that it goes into."""

    network: Network
    start: int
    stop: int
    files: Mapping[str, Path]


def measure(
    wanted: Sequence[tuple[Network, Sequence[str]]], protocol: Protocol, folder: Path, *, address: str | None,
    threads: int | None, console: Console,
) -> list[dict[str, Points]]:  # fmt: skip
    """Stage -> points of all images, for each of `wanted` in its order. Whole ranges are kept in `folder/points`.

    In this process, or with `address` as Ray tasks of one range each. The protocol's own attack is not looked at.
    """
    from trainers.data.images import load_splits
    from trainers.evaluation.ranges import fixed_subset
    from trainers.lens.points import Points

    images = fixed_subset(load_splits(wanted[0][0].subject.experiment.data).test, protocol.samples)
    identities = [_identity(network, images, console) for network, _ in wanted]

    def file(identity: str, stage: str, bounds: tuple[int, int]) -> Path:
        digest = replace(protocol, attack=stage).digest
        return folder / POINTS_FOLDER / f"{identity}-{digest}-{bounds[0]:06d}-{bounds[1]:06d}.npz"

    tasks, planned = [], set()
    for (network, stages), identity in zip(wanted, identities, strict=True):
        for bounds in protocol.ranges():
            files = {stage: file(identity, stage, bounds) for stage in stages}
            missing = {s: path for s, path in files.items() if path not in planned and not path.exists()}
            planned |= set(missing.values())
            if missing:
                tasks.append(Task(network, *bounds, missing))
    if tasks and address is None:
        _measure_here(tasks, images, protocol, threads, console)
    elif tasks:
        _measure_on_ray(tasks, protocol, address, threads or 1, console)
    return [
        {
            stage: Points.joined([Points.load(file(identity, stage, bounds)) for bounds in protocol.ranges()])
            for stage in stages
        }
        for (_, stages), identity in zip(wanted, identities, strict=True)
    ]


def _identity(network: Network, images: ImageSet, console: Console) -> str:
    """A name for the weights, from the weights; refuses a model whose answers no attack could use."""
    from trainers.evaluation.classifier import check_classifier
    from trainers.foreign.weights import weights_digest

    model, data = network.subject.load(), network.subject.experiment.data
    try:
        warnings = check_classifier(model, images.floats(0, 8), catalog.DATASETS[data.name].num_classes)
    except InvalidInput as error:
        raise InvalidInput.single(network.name, str(error)) from error
    for warning in warnings:
        console.print(f"{network.name}: warning: {warning}", style="yellow", soft_wrap=True, markup=False)
    return weights_digest(model)[:16]


def _measure_here(
    tasks: Sequence[Task], images: ImageSet, protocol: Protocol, threads: int | None, console: Console
) -> None:
    from trainers.ranks import Ranks

    if threads:
        import torch

        torch.set_num_threads(threads)
    device = Ranks.current().device
    images = images.to(device)
    model, loaded = None, None
    with console.status("") as status:
        for done, task in enumerate(tasks):
            if task.network is not loaded:
                model, loaded = task.network.subject.load().to(device), task.network
            assert model is not None
            for stage in _measured(model, images, task.files, protocol, task.start, task.stop):
                status.update(f"{_describe(task)}: {stage} ({done} of {len(tasks)} ranges done)")
            console.print(f"{_describe(task)}: {', '.join(task.files)}", soft_wrap=True, markup=False)


def _measured(
    model: nn.Module, images: ImageSet, files: Mapping[str, Path], protocol: Protocol, start: int, stop: int
) -> Iterator[str]:
    """Measure one range stage by stage, each file written as its stage ends; yields the stage that comes next."""
    from trainers.lens.measure import measure_range

    for stage, file in files.items():
        yield stage
        measure_range(model, images, replace(protocol, attack=stage), start, stop).save(file)


def _measure_on_ray(
    tasks: Sequence[Task], protocol: Protocol, address: str | None, threads: int, console: Console
) -> None:
    from orchestrator import cluster

    with cluster.connect(address, 1) as capacity:
        import ray

        remote = ray.remote(_measure_task).options(num_cpus=threads, num_gpus=1 if capacity.gpus else 0, max_retries=2)
        pending = {
            remote.remote(
                task.network.subject.load, task.network.subject.experiment.data,
                {stage: str(file.absolute()) for stage, file in task.files.items()}, protocol, task.start, task.stop,
                threads,
            ): task
            for task in tasks
        }  # fmt: skip
        console.print(f"{len(tasks)} ranges on {capacity.cpus} CPUs, {threads} each", soft_wrap=True)
        while pending:
            (reference,), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(reference)
            ray.get(reference)
            console.print(f"{_describe(task)}: {', '.join(task.files)}", soft_wrap=True, markup=False)


def _measure_task(
    load: Any, data: Data, files: Mapping[str, str], protocol: Protocol, start: int, stop: int, threads: int
) -> None:
    """One range in a Ray worker."""
    import torch

    from trainers.data.images import load_splits
    from trainers.evaluation.ranges import fixed_subset
    from trainers.ranks import Ranks

    torch.set_num_threads(threads)
    device = Ranks.current().device
    images = fixed_subset(load_splits(data).test, protocol.samples).to(device)
    for _stage in _measured(load().to(device), images, {s: Path(f) for s, f in files.items()}, protocol, start, stop):
        pass


def _describe(task: Task) -> str:
    network = task.network
    epoch = "" if network.epoch is None else f" epoch {network.epoch + 1}"
    return f"{network.name}{epoch}  images {task.start}-{task.stop}"
