"""The one pass over all networks: every attack once on every image, kept by network, attack and range.

What is kept is found again by the network, the images and the protocol, so a second call does what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.cluster.tasks import Task, run_tasks
from orchestrator.lens.networks import Network, identity
from trainers.catalog.attacks import needs_gradients
from trainers.config import Data
from trainers.evaluation.result import Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainers.data.images import ImageSet
    from trainers.lens.points import Points

POINTS_FOLDER = "points"


@dataclass(frozen=True)
class Measured:
    """Stage -> points of all images for one network, which has this `identity`, read from these files."""

    identity: str
    points: Mapping[str, Points]
    files: tuple[Path, ...]


def measure(
    wanted: Sequence[tuple[Network, Sequence[str]]], protocol: Protocol, folder: Path, *, address: str | None,
    threads: int | None, console: Console,
) -> list[Measured]:  # fmt: skip
    """What each of `wanted` answers, in its order. Whole ranges are kept in `folder/points`.

    In this process, or with `address` on Ray: a task for each range and stage. The protocol's own attack is not looked
    at.
    """
    images = _images(wanted[0][0].data, protocol.samples)
    identities = [
        identity(network, images, console, gradients=any(map(needs_gradients, stages))) for network, stages in wanted
    ]

    def file(name: str, stage: str, bounds: tuple[int, int]) -> Path:
        digest = replace(protocol, attack=stage).digest
        return (folder / POINTS_FOLDER / f"{name[:16]}-{digest}-{bounds[0]:06d}-{bounds[1]:06d}.npz").absolute()

    tasks: dict[Path, Task] = {}
    for (network, stages), name in zip(wanted, identities, strict=True):
        for bounds in protocol.ranges():
            for stage in stages:
                kept = file(name, stage, bounds)
                if not kept.exists():
                    work = partial(
                        measure_shard, data=network.data, protocol=replace(protocol, attack=stage), bounds=bounds,
                        file=kept,
                    )  # fmt: skip
                    tasks.setdefault(kept, Task(_describe(network, bounds, stage), kept, network.subject.load, work))
    run_tasks(list(tasks.values()), address=address, threads=threads, console=console)
    return [
        _measured(name, {stage: [file(name, stage, bounds) for bounds in protocol.ranges()] for stage in stages})
        for (_, stages), name in zip(wanted, identities, strict=True)
    ]


def measure_shard(
    model: nn.Module, device: torch.device, *, data: Data, protocol: Protocol, bounds: tuple[int, int], file: Path
) -> str:
    """One attack on one range of the test images of `data`, into a file."""
    from trainers.lens.measure import measure_range

    images = _images(data, protocol.samples).to(device)
    measure_range(model, images, protocol, *bounds).save(file)
    return ""


def _measured(name: str, files: Mapping[str, Sequence[Path]]) -> Measured:
    from trainers.lens.points import Points

    points = {stage: Points.joined([Points.load(file) for file in parts]) for stage, parts in files.items()}
    return Measured(name, points, tuple(file for parts in files.values() for file in parts))


@lru_cache(maxsize=1)
def _images(data: Data, samples: int) -> ImageSet:
    """Kept for the next range."""
    from trainers.evaluation.ranges import evaluation_images

    return evaluation_images(data, samples)


def _describe(network: Network, bounds: tuple[int, int], stage: str) -> str:
    epoch = "" if network.epoch is None else f" epoch {network.epoch + 1}"
    return f"{network.name}{epoch}  images {bounds[0]}-{bounds[1]}  {stage}"
