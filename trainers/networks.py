"""The nets of one run: the one that is trained, and the one that is evaluated."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainers.checkpoint import Checkpoint
from trainers.config import Experiment
from trainers.models.autocast import Autocast
from trainers.models.build import build_model
from trainers.models.synchronized import synchronize_batch_norm
from trainers.ranks import Ranks

if TYPE_CHECKING:
    from trainers.models.compiled import Compiled


class Networks:
    """`trained` has the weights that the optimizer updates; `parallel` is the same net as the training step calls it.

    `evaluated` is measured after every epoch and written into checkpoints: the trained net, or the exponential moving
    average of its weights and batch-norm statistics where `optimizer.ema_decay` is given.
    """

    def __init__(self, experiment: Experiment, ranks: Ranks) -> None:
        self.trained = build_model(experiment).to(ranks.device).to(memory_format=torch.channels_last)
        if experiment.synchronize_batch_norm and ranks.world_size > 1:
            synchronize_batch_norm(self.trained)
        self._ranks = ranks
        self._decay = experiment.optimizer.ema_decay
        self._average = None if self._decay is None else copy.deepcopy(self.trained)
        self._floats, self._counts = ([], []) if self._average is None else _pairs(self._average, self.trained)
        self._followed = False
        lowered = Autocast(self.trained) if experiment.precision == "bfloat16" else self.trained
        self._compiled = _compiled(lowered) if experiment.compile else None
        self.parallel = ranks.data_parallel(self._compiled or lowered)

    @property
    def is_compiled(self) -> bool:
        """Whether the training step runs compiled; False where compiling was wanted and failed."""
        return self._compiled is not None and self._compiled.is_compiled

    @property
    def evaluated(self) -> nn.Module:
        """The net to measure and to keep."""
        return self.trained if self._average is None else self._average

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the average follow the weights, from those after the first step on."""
        if self._average is None or self._decay is None:
            return
        # The first step's weights are copied: an average that began with the initial ones would carry them along.
        weight = 1.0 - self._decay if self._followed else 1.0
        averages, currents = zip(*self._floats, strict=True)
        torch._foreach_lerp_(averages, currents, weight)
        for average, current in self._counts:  # a network of another package may count its batches
            average.copy_(current)
        self._followed = True

    def after_epoch(self) -> None:
        """Make the batch-norm statistics of all ranks one."""
        self._ranks.average_buffers(self.trained)
        if self._average is not None:
            self._ranks.average_buffers(self._average)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights of the evaluated net: those of the trained one, if they differ."""
        if self._average is None:
            return {}
        weights: dict[str, Tensor] = {
            name: tensor.detach().contiguous().cpu() for name, tensor in self.trained.state_dict().items()
        }
        return {"trained": weights}

    def restore(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Take up the weights of a checkpoint and its training state."""
        self.trained.load_state_dict(state["trained"] if self._average is not None else checkpoint.weights())
        if self._average is not None:
            self._average.load_state_dict(checkpoint.weights())
            self._followed = True


def _pairs(average: nn.Module, trained: nn.Module) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """(average, current) of all floating-point entries of two networks, and of all others.

    Found once: entries stay the same tensors through steps and `load_state_dict`, and finding them takes as long as
    averaging.
    """
    pairs = list(zip(average.state_dict().values(), trained.state_dict().values(), strict=True))
    return (
        [pair for pair in pairs if pair[0].is_floating_point()],
        [pair for pair in pairs if not pair[0].is_floating_point()],
    )


def _compiled(module: nn.Module) -> Compiled:
    from trainers.models.compiled import Compiled  # the import of the compiler takes seconds

    return Compiled(module)
