"""Chains in fixed shards, in this process or as Ray tasks; every shard is kept and found again by what made it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from orchestrator.cluster.tasks import Task, run_tasks
from orchestrator.lens.networks import Network, identity
from trainers.config import Data
from trainers.generation.settings import Dynamics, StartSettings
from trainers.whole_files import write_with

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainers.data.images import ImageSet
    from trainers.generation.starts import Draw

SHARDS_FOLDER = "shards"
# Of more classes nothing stays from one shard to the next: 40 MB each, Tiny-ImageNet's 200 would take 8 GB an init.
_CLASSES_KEPT = 100
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sampling:
    """All that decides which images come out, beside the network and the data. `tolerance` None: no early stop.

    A compiled network rounds otherwise, so `compiled` is a part of it.

    Chain i of `per_class` · len(`classes`) is of class `classes[i % len(classes)]`. `shard` is how many chains share
    their random numbers. `starts` are fields of `StartSettings`, `dynamics` those of `Dynamics`.
    """

    init: str
    classes: tuple[int, ...]
    per_class: int
    seed: int
    shard: int
    starts: Mapping[str, Any]
    dynamics: Mapping[str, Any]
    tolerance: float | None
    compiled: bool = False

    def ranges(self) -> list[tuple[int, int]]:
        """Index ranges of chains, a shard each."""
        count = self.per_class * len(self.classes)
        return [(start, min(start + self.shard, count)) for start in range(0, count, self.shard)]

    def digest(self, identity: str) -> str:
        """A short name for the images of a network, which has this identity on its training images."""
        return hashlib.sha256(f"{identity} {json.dumps(asdict(self), sort_keys=True)}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Made:
    """Images uint8 [N, H, W, C] of a network and a sampling, labels and steps [N], and energies [steps + 1, K] in nats.

    `target_energy` is the mean of E(x_n, y) over the chains of a class, `other_energy` that of the other classes'
    joint energies; `class_energy` [K] is the mean over training images. `seconds` is what the chains took in all.
    `digest` names them by what decides them, `files` are the shards that hold them.
    """

    network: str
    init: str
    images: Array
    labels: Array
    steps: Array
    target_energy: Array
    other_energy: Array
    class_energy: Array
    seconds: float
    digest: str
    files: tuple[Path, ...]


def make(
    networks: Sequence[Network], samplings: Sequence[Sampling], folder: Path, *, address: str | None, threads: int,
    console: Console,
) -> list[Made]:  # fmt: skip
    """The images of every network by every sampling. Shards that are in `folder/shards` are not made again."""
    names = [identity(network, _training(network.data), console, gradients=True) for network in networks]
    shards = (folder / SHARDS_FOLDER).absolute()
    tasks: dict[Path, Task] = {}
    found = []
    for (network, name), sampling in product(zip(networks, names, strict=True), samplings):
        digest, energies = sampling.digest(name), shards / f"energies-{name[:16]}.npz"
        files = []
        for start, stop in sampling.ranges():
            file = shards / f"{digest}-{start:06d}-{stop:06d}.npz"
            files.append(file)
            if not (file.exists() and energies.exists()):
                work = partial(
                    make_shard, data=network.data, sampling=sampling, bounds=(start, stop), energies=energies, file=file
                )
                said = f"{network.name}, {sampling.init}: chains {start}-{stop}"
                tasks.setdefault(file, Task(said, file, network.subject.load, work))
        found.append((network.name, sampling.init, digest, tuple(files), energies))
    run_tasks(list(tasks.values()), address=address, threads=threads, console=console)
    return [_joined(*one) for one in found]


def make_shard(
    model: nn.Module, device: torch.device, *, data: Data, sampling: Sampling, bounds: tuple[int, int], energies: Path,
    file: Path,
) -> str:  # fmt: skip
    """One shard of chains into a file; the energies of training images too, where no other shard has left them."""
    import torch

    from trainers.evaluation.searching import for_search
    from trainers.generation.sampler import Goal, generate
    from trainers.precision import tf32
    from trainers.randomness import generator

    model = for_search(model)
    labels = torch.tensor([sampling.classes[chain % len(sampling.classes)] for chain in range(*bounds)])
    starts = _starts(data, sampling, labels, bounds[0])
    with tf32(allowed=False):
        mean, deviation = (torch.from_numpy(of).to(device) for of in _class_energies(model, device, data, energies))
        began = time.perf_counter()
        if sampling.compiled:
            model.compile()
        made = generate(
            model, starts.to(device), labels.to(device), Dynamics(**sampling.dynamics),
            generator(device, sampling.seed, "chains", bounds[0]),
            None if sampling.tolerance is None else Goal(mean, deviation, sampling.tolerance),
        )  # fmt: skip
    images = (made.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    seconds, steps = time.perf_counter() - began, made.steps.cpu().numpy()
    content: dict[str, Any] = {
        "images": images, "labels": labels.numpy(), "steps": steps, "chains": made.chains.cpu().numpy(),
        "target_energy": made.target_energy.cpu().numpy(), "other_energy": made.other_energy.cpu().numpy(),
        "seconds": np.float64(seconds),
    }  # fmt: skip
    write_with(file, lambda opened: np.savez_compressed(opened, **content))
    return f"{steps.mean():.0f} steps, {len(images) / seconds:.1f} images/s"


def _class_energies(model: nn.Module, device: torch.device, data: Data, file: Path) -> tuple[Array, Array]:
    """(mean, deviation) [K]: one pass over the training images for all shards of a network."""
    from trainers.generation.sampler import class_energies

    if not file.exists():
        mean, deviation = (of.cpu().numpy() for of in class_energies(model, _training(data), 500, device))
        write_with(file, lambda opened: np.savez(opened, mean=mean, deviation=deviation))
    content = _read(file)
    return content["mean"], content["deviation"]


def _starts(data: Data, sampling: Sampling, labels: torch.Tensor, first: int) -> torch.Tensor:
    import torch

    from trainers.randomness import generator

    fitted = _kept if len(sampling.classes) <= _CLASSES_KEPT else _fitted
    settings = StartSettings(**sampling.starts)
    random = generator("cpu", sampling.seed, "starts", first)
    places, drawn = [], []
    for label in sorted(set(labels.tolist())):
        own = (labels == label).nonzero().squeeze(1)
        places.append(own)
        drawn.append(fitted(data, sampling.init, label, settings)(len(own), random))
    return torch.cat(drawn)[torch.cat(places).argsort()]


def _fitted(data: Data, init: str, label: int, settings: StartSettings) -> Draw:
    from trainers.generation.starts import starts_of

    return starts_of(init, _training(data), label, settings)


# Fitted once a process, for four inits: the principal components of a class take seconds.
_kept = lru_cache(maxsize=4 * _CLASSES_KEPT)(_fitted)


@lru_cache(maxsize=1)
def _training(data: Data) -> ImageSet:
    """The images that the network was trained on, kept for the next shard."""
    from trainers.data.images import load_splits

    return load_splits(data).train


def _joined(network: str, init: str, digest: str, files: tuple[Path, ...], energies: Path) -> Made:
    parts = [_read(file) for file in files]
    chains = np.maximum(sum(part["chains"] for part in parts), 1)
    images, labels, steps = (np.concatenate([part[name] for part in parts]) for name in ("images", "labels", "steps"))
    target, other = (sum(part[name] for part in parts) / chains for name in ("target_energy", "other_energy"))
    seconds = float(sum(part["seconds"] for part in parts))
    mean = _read(energies)["mean"]
    return Made(network, init, images, labels, steps, target, other, mean, seconds, digest, files)


def _read(file: Path) -> dict[str, Array]:
    with np.load(file, allow_pickle=False) as content:
        return dict(content)
