"""A training step of each method against the methods' public loops: the step alone, and with the loader."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.published import STEP_OF
from benchmarks.results import Table
from benchmarks.subjects import DEVICE, ON_GPU, ON_WHAT, OurStep, PublishedStep, always, images_of, settings_of, the_net
from benchmarks.timing import in_turns
from trainers.config import Experiment
from trainers.data.batches import TrainingBatches
from trainers.data.images import ImageSet
from trainers.precision import tf32
from trainers.ranks import Ranks


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


def _their_loader(data: ImageSet, experiment: Experiment) -> Iterator[tuple[Tensor, Tensor]]:
    # Processes beside a GPU's, as the public codes have them; none where the time of this process is what counts.
    loader = DataLoader(
        _Pictures(data), experiment.optimizer.batch_size, shuffle=True, drop_last=True,
        num_workers=2 if ON_GPU else 0, pin_memory=ON_GPU, persistent_workers=ON_GPU,
    )  # fmt: skip
    while True:
        for images, labels in loader:
            yield images.to(DEVICE), labels.to(DEVICE)


def _our_loader(data: ImageSet, experiment: Experiment) -> Iterator[tuple[Tensor, Tensor]]:
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
    for name in STEP_OF:
        experiment = settings_of(name)
        batch = experiment.optimizer.batch_size
        ours = OurStep(experiment, _our_loader(data, experiment))
        sides = {
            "whole": PublishedStep(name, experiment, _their_loader(data, experiment)),
            "step": PublishedStep(name, experiment, always(images_of(batch))),
            "noise": ours,
        }
        with tf32(allowed=False):
            timed = in_turns(ours, sides, rounds)
        speed, passes = f"{batch / timed.seconds:.0f}", str(experiment.training_passes)
        rows.append((name, speed, passes, *(str(timed.ratios[side]) for side in sides)))
    return Table(
        "A training step against the public loops",
        f"{the_net()}, float32, {ON_WHAT}, {rounds} rounds in turns; median and middle half of the rounds. `public / "
        "ours` is with either side's loader (PIL and torchvision there, indexing here), `step alone` without theirs. "
        "`ours / ours` is the noise of the measurement. Both sides move the weights alike: `tests/benchmarks` holds "
        "one step of either to 1e-9 of the other in float64.",
        ("method", "ours, images/s", "passes per image", "public / ours", "step alone", "ours / ours"),
        tuple(rows),
    )
