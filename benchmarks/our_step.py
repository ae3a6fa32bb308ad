"""One training step of ours on a fixed batch, to be called again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.training_step import DEVICE, optimizer_of
from trainers.config import Experiment
from trainers.data.images import ImageSet
from trainers.models.autocast import Autocast
from trainers.models.build import build_model
from trainers.models.compiled import Compiled
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step

# What `precision` and `compile` make of a network.
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda net: net,
    "float32, compiled": Compiled,
    "bfloat16": Autocast,
    "bfloat16, compiled": lambda net: Compiled(Autocast(net)),
}


class OurStep:
    """Calling it takes one step of `experiment` on all images of `data`, in one of FORMS. The weights are seeded."""

    def __init__(self, experiment: Experiment, data: ImageSet, form: str = "float32") -> None:
        net = build_model(experiment).to(DEVICE).to(memory_format=torch.channels_last).train()
        self._model = FORMS[form](net)
        self._optimizer = optimizer_of(net, fused=True)
        self._method = build_method(experiment)
        self._noise = Noise(generator(DEVICE, 0, "attack"))
        self._images = data.floats().contiguous(memory_format=torch.channels_last).to(DEVICE)
        self._labels = data.labels.to(DEVICE)

    def __call__(self) -> None:
        """Attack, forwards, loss, update."""
        train_step(self._model, self._method, self._optimizer, self._images, self._labels, self._noise, progress=0.0)

    def attack(self) -> None:
        """The attack alone."""
        self._method.attacker(self._model, self._images, self._labels, self._noise)

    @property
    def is_compiled(self) -> bool:
        """Whether it runs compiled; False as well where that was wanted and failed."""
        return isinstance(self._model, Compiled) and self._model.is_compiled
