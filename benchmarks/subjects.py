"""What the benchmarks of training steps measure: our step and the public loop's, on the same net and images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.published import STEP_OF, Log
from trainers.config import Experiment, parse
from trainers.data.images import ImageSet
from trainers.models.autocast import Autocast
from trainers.models.build import build_model
from trainers.models.compiled import Compiled
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks
from trainers.step import build_method, train_step
from trainers.totals import EpochTotals

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
BATCH = 128 if ON_GPU else 64
MODEL = {"name": "preact_resnet18"} if ON_GPU else {"name": "preact_resnet18", "width": 16, "blocks_per_stage": 1}
ON_WHAT = "one GPU, wall clock" if ON_GPU else "one CPU thread, time of the process"

# What `precision` and `compile` make of a network.
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda net: net,
    "float32, compiled": Compiled,
    "bfloat16": Autocast,
    "bfloat16, compiled": lambda net: Compiled(Autocast(net)),
}

Batches = Iterable[tuple[Tensor, Tensor]]


def the_net() -> str:
    """The network of `settings_of` and its batch, in words."""
    return f"{', '.join(f'{key} {value}' for key, value in MODEL.items())}; batch {BATCH}"


def settings_of(method: str, model: dict[str, object] | None = None) -> Experiment:
    """One method at ε = 8/255 with the published step sizes, on CIFAR-10's shapes."""
    raw: dict[str, object] = {
        "data": {"name": "cifar10"}, "model": dict(model or MODEL), "method": method, "attack": {"epsilon": "8/255"},
        "optimizer": {"batch_size": BATCH},
    }  # fmt: skip
    if method == "mail_trades":
        raw["method"] = {"name": method, "weighting": {"name": "margin", "start": 0}}
    return parse(raw)


def images_of(count: int) -> ImageSet:
    """Random pictures of CIFAR-10's shape: a step's time does not depend on what they show."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageSet(torch.from_numpy(pictures), torch.from_numpy(rng.integers(0, 10, count)))


def always(data: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of `data` as one batch, again and again."""
    return itertools.repeat((data.floats().to(DEVICE), data.labels.to(DEVICE)))


def optimizer_of(model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """SGD with the usual momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=fused)


class OurStep:
    """Each call takes a step of `experiment` on the next of `batches`, in one of FORMS."""

    def __init__(self, experiment: Experiment, batches: Batches, form: str = "float32") -> None:
        net = build_model(experiment).to(DEVICE).to(memory_format=torch.channels_last).train()
        self._model = FORMS[form](net)
        self._optimizer = optimizer_of(net, fused=True)
        self._method = build_method(experiment)
        self._noise = Noise(generator(DEVICE, 0, "attack"))
        self._totals = EpochTotals(Ranks(0, 1, DEVICE), experiment.optimizer.batch_size, comparable=True)
        self._batches = iter(batches)

    def __call__(self) -> None:
        """Attack, forwards, loss, update, and what is kept of it for the epoch's metrics."""
        images, labels = self._next()
        self._totals.add(
            train_step(self._model, self._method, self._optimizer, images, labels, self._noise, epoch_fraction=0.0)
        )

    def attack(self) -> None:
        """The attack alone."""
        self._method.attacker(self._model, *self._next(), self._noise)

    @property
    def is_compiled(self) -> bool:
        """Whether it runs compiled; False as well where that was wanted and failed."""
        return isinstance(self._model, Compiled) and self._model.is_compiled

    def _next(self) -> tuple[Tensor, Tensor]:
        images, labels = next(self._batches)
        return images.contiguous(memory_format=torch.channels_last), labels


class PublishedStep:
    """Each call takes a step of the public loop of `method` on the next of `batches`, from the same weights."""

    def __init__(self, method: str, experiment: Experiment, batches: Batches) -> None:
        self._step = STEP_OF[method]
        self._model = build_model(experiment).to(DEVICE).train()
        self._optimizer = optimizer_of(self._model, fused=False)
        self._noise, self._log = Noise(generator(DEVICE, 0, "attack")), Log()
        self._batches = iter(batches)

    def __call__(self) -> None:
        """One update."""
        images, labels = next(self._batches)
        self._step(self._model, self._optimizer, images.contiguous(), labels, self._noise, self._log)
