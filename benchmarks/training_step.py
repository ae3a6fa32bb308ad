"""A training step of each method against the methods' public loops: the step alone, and with the loader."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.published import STEP_OF, Log
from benchmarks.results import Table
from benchmarks.timing import in_turns
from trainers.config import Experiment, parse
from trainers.data.batches import TrainingBatches
from trainers.data.images import ImageSet
from trainers.models.build import build_model
from trainers.precision import tf32
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks
from trainers.step import build_method, train_step

ON_GPU = torch.cuda.is_available()
BATCH = 128 if ON_GPU else 64
MODEL = {"name": "preact_resnet18"} if ON_GPU else {"name": "preact_resnet18", "width": 16, "blocks_per_stage": 1}
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def settings_of(method: str, model: dict[str, object] | None = None) -> Experiment:
    """One method at ε = 8/255 with the published step sizes, on CIFAR-10's shapes."""
    raw: dict[str, object] = {
        "data": {"name": "cifar10"}, "model": dict(model or MODEL), "method": method, "attack": {"epsilon": "8/255"},
        "optimizer": {"batch_size": BATCH},
    }  # fmt: skip
    if method == "mail_trades":
        raw["method"] = {"name": method, "weighting": {"name": "margin", "start": 0}}
    return parse(raw)


def optimizer_of(model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """SGD with the usual momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=fused)


def images_of(count: int) -> ImageSet:
    """Random pictures of CIFAR-10's shape: a step's time does not depend on what they show."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageSet(torch.from_numpy(pictures), torch.from_numpy(rng.integers(0, 10, count)))


class _Pictures(Dataset[tuple[Tensor, int]]):
    """PIL pictures through torchvision's transforms, as the public loaders make them."""

    def __init__(self, data: ImageSet) -> None:
        self._pictures = [Image.fromarray(picture) for picture in data.images.numpy()]
        self._labels = data.labels.tolist()
        self._transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._pictures[index]), self._labels[index]


def _endless(data: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(_Pictures(data), batch_size=BATCH, shuffle=True, drop_last=True)
    while True:
        for images, labels in loader:
            yield images.to(DEVICE), labels.to(DEVICE)


def _ours_endless(data: ImageSet, experiment: Experiment) -> Iterator[tuple[Tensor, Tensor]]:
    batches = TrainingBatches(data.to(DEVICE), experiment, Ranks(0, 1, DEVICE))
    epoch = 0
    while True:
        for images, labels, _ in batches.epoch(epoch):
            yield images, labels
        epoch += 1


def measure(rounds: int) -> Table:
    """One row a method."""
    data = images_of(1024)
    rows = []
    for name, published_step in STEP_OF.items():
        experiment = settings_of(name)
        model = build_model(experiment).to(DEVICE).train()
        plain = copy.deepcopy(model)
        model = model.to(memory_format=torch.channels_last)
        method, noise, log = build_method(experiment), Noise(generator(DEVICE, 0, "attack")), Log()
        optimizer, plain_optimizer = optimizer_of(model, fused=True), optimizer_of(plain, fused=False)
        own, theirs = _ours_endless(data, experiment), _endless(data)
        fixed = next(own)

        def ours() -> None:
            images, labels = next(own)  # noqa: B023
            images = images.contiguous(memory_format=torch.channels_last)
            train_step(model, method, optimizer, images, labels, noise, progress=0.0)  # noqa: B023

        def published(batch: tuple[Tensor, Tensor] | None = None) -> None:
            images, labels = batch or next(theirs)  # noqa: B023
            published_step(plain, plain_optimizer, images.contiguous(), labels, noise, log)  # noqa: B023

        sides = {"whole": published, "step": lambda: published(fixed), "noise": ours}  # noqa: B023
        with tf32(allowed=False):
            timed = in_turns(ours, sides, rounds)
        rows.append(
            (
                name, f"{BATCH / timed.seconds:.0f}", f"{experiment.training_passes}",
                *(str(timed.ratios[which]) for which in ("whole", "step", "noise")),
            )
        )  # fmt: skip
    net = ", ".join(f"{key} {value}" for key, value in MODEL.items())
    return Table(
        "A training step against the public loops",
        f"{net}; batch {BATCH}, float32, {'GPU' if ON_GPU else 'one CPU thread, time of the process'}, {rounds} rounds "
        "in turns; median and middle half of the rounds. `public / ours` is with either side's loader (PIL and "
        "torchvision there, indexing here), `step alone` without. `ours / ours` is the noise of the measurement. Both "
        "sides move the weights alike: `tests/benchmarks` holds one step of either to 1e-9 of the other in float64.",
        ("method", "ours, images/s", "passes per image", "public / ours", "step alone", "ours / ours"),
        tuple(rows),
    )
