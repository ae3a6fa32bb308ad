"""Chains in fixed shards, in this process or as Ray tasks; every shard is kept and found again by what made it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from orchestrator.lens.networks import Network
from trainers.config import Data

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainers.data.images import ImageSet

SHARDS_FOLDER = "shards"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Recipe:
    """All that decides which images come out, beside the network and the data. `tolerance` None: no early stop.

    Chain i of `per_class` · len(`classes`) is of class `classes[i % len(classes)]`. `shard` is how many chains share
    their random numbers. `starts` and `dynamics` are the fields of the types of the same names.
    """

    init: str
    classes: tuple[int, ...]
    per_class: int
    seed: int
    shard: int
    starts: Mapping[str, Any]
    dynamics: Mapping[str, Any]
    tolerance: float | None

    def ranges(self) -> list[tuple[int, int]]:
        """Index ranges of chains, a shard each."""
        count = self.per_class * len(self.classes)
        return [(start, min(start + self.shard, count)) for start in range(0, count, self.shard)]

    def digest(self, weights: str) -> str:
        """A short name for the images of a network, known by its weights."""
        return hashlib.sha256(f"{weights} {json.dumps(asdict(self), sort_keys=True)}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Made:
    """Images uint8 [N, H, W, C] of a network and a recipe, labels and steps [N], and energies [steps + 1, K] in nats.

    `target_energy` is the mean of E(x_n, y) over the chains of a class, `other_energy` that of the other classes'
    joint energies; `class_energy` [K] is the mean over training images. `seconds` is what the chains took in all.
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


def make(
    wanted: Sequence[tuple[Network, Recipe]], folder: Path, *, address: str | None, threads: int, console: Console
) -> list[Made]:
    """The images of every network by every recipe. Shards that are in `folder/shards` are not made again."""
    from trainers.foreign.weights import weights_digest

    weights = {id(network): weights_digest(network.subject.load()) for network, _ in wanted}
    files = [
        [
            folder / SHARDS_FOLDER / f"{recipe.digest(weights[id(network)])}-{start:06d}-{stop:06d}.npz"
            for start, stop in recipe.ranges()
        ]
        for network, recipe in wanted
    ]
    tasks = [
        (network, recipe, bounds, file)
        for (network, recipe), listed in zip(wanted, files, strict=True)
        for bounds, file in zip(recipe.ranges(), listed, strict=True)
        if not file.exists()
    ]
    if tasks and address is None:
        for network, recipe, bounds, file in tasks:
            with console.status(f"{network.name}, {recipe.init}: chains {bounds[0]}-{bounds[1]}"):
                make_shard(network.subject.load, network.subject.experiment.data, recipe, bounds, str(file), threads)
            console.print(_line(network, recipe, bounds, file), soft_wrap=True, markup=False)
    elif tasks:
        _on_ray(tasks, address, threads, console)
    return [_joined(network.name, recipe, listed) for (network, recipe), listed in zip(wanted, files, strict=True)]


def _on_ray(
    tasks: Sequence[tuple[Network, Recipe, tuple[int, int], Path]], address: str | None, threads: int, console: Console
) -> None:
    from orchestrator import cluster

    with cluster.connect(address, 1) as capacity:
        import ray

        remote = ray.remote(make_shard).options(num_cpus=threads, num_gpus=1 if capacity.gpus else 0, max_retries=2)
        pending = {
            remote.remote(
                network.subject.load, network.subject.experiment.data, recipe, bounds, str(file.absolute()), threads
            ): (network, recipe, bounds, file)
            for network, recipe, bounds, file in tasks
        }
        while pending:
            (reference,), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(reference)
            ray.get(reference)
            console.print(_line(*task), soft_wrap=True, markup=False)


def make_shard(load: Any, data: Data, recipe: Recipe, bounds: tuple[int, int], file: str, threads: int) -> None:
    """One shard of chains, written whole or not at all."""
    import torch

    from trainers.data.images import load_splits
    from trainers.evaluation.searching import for_search
    from trainers.generation.sampler import Dynamics, Goal, class_energies, generate
    from trainers.randomness import generator
    from trainers.ranks import Ranks

    torch.set_num_threads(threads)
    device = Ranks.current().device
    model = for_search(load()).to(device)
    train = load_splits(data).train
    mean, deviation = _class_energies(model, train, device, class_energies)
    goal = None if recipe.tolerance is None else Goal(mean, deviation, recipe.tolerance)
    labels = torch.tensor([recipe.classes[chain % len(recipe.classes)] for chain in range(*bounds)])
    starts = _starts(data, recipe, labels, bounds[0])
    began = time.perf_counter()
    made = generate(
        model, starts.to(device), labels.to(device), Dynamics(**recipe.dynamics),
        generator(device, recipe.seed, "chains", bounds[0]), goal,
    )  # fmt: skip
    images = (made.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    _write(
        Path(file), images=images, labels=labels.numpy(), steps=made.steps.cpu().numpy(),
        target_energy=made.target_energy.cpu().numpy(), other_energy=made.other_energy.cpu().numpy(),
        chains=made.chains.cpu().numpy(), class_energy=mean.cpu().numpy(),
        seconds=np.float64(time.perf_counter() - began),
    )  # fmt: skip


def _class_energies(model: nn.Module, train: ImageSet, device: torch.device, measure: Any) -> Any:
    return measure(model, train.floats().to(device), train.labels.to(device), 500)


def _starts(data: Data, recipe: Recipe, labels: torch.Tensor, first: int) -> torch.Tensor:
    import torch

    from trainers.randomness import generator

    draws = _draws(data.model_dump_json(), recipe.init, json.dumps(dict(recipe.starts), sort_keys=True))
    random = generator("cpu", recipe.seed, "starts", first)
    starts: torch.Tensor | None = None
    for label in sorted(set(labels.tolist())):
        own = labels == label
        drawn = draws[label](int(own.sum()), random)
        starts = torch.empty((len(labels), *drawn.shape[1:])) if starts is None else starts
        starts[own] = drawn
    assert starts is not None
    return starts


@lru_cache(maxsize=1)
def _draws(data: str, init: str, settings: str) -> Any:
    """Fitted once a process: the principal components of a class take seconds."""
    from trainers.data.images import load_splits
    from trainers.generation.starts import Settings, starts_of

    train = load_splits(Data.model_validate_json(data)).train
    return starts_of(init, train.floats(), train.labels, Settings(**json.loads(settings)))


def _write(file: Path, **arrays: Array | np.float64) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.urandom(4).hex()}.tmp")
    with open(temporary, "wb") as opened:
        np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
    temporary.replace(file)


def _joined(network: str, recipe: Recipe, files: Sequence[Path]) -> Made:
    parts = [dict(np.load(file, allow_pickle=False)) for file in files]
    chains = np.maximum(sum(part["chains"] for part in parts), 1)
    images, labels, steps = (np.concatenate([part[name] for part in parts]) for name in ("images", "labels", "steps"))
    target, other = (sum(part[name] for part in parts) / chains for name in ("target_energy", "other_energy"))
    seconds = float(sum(part["seconds"] for part in parts))
    return Made(network, recipe.init, images, labels, steps, target, other, parts[0]["class_energy"], seconds)


def _line(network: Network, recipe: Recipe, bounds: tuple[int, int], file: Path) -> str:
    with np.load(file, allow_pickle=False) as part:
        rate, steps = (bounds[1] - bounds[0]) / float(part["seconds"]), float(part["steps"].mean())
    return f"{network.name}, {recipe.init}: chains {bounds[0]}-{bounds[1]}, {steps:.0f} steps, {rate:.1f} images/s"
