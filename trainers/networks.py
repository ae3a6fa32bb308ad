"""The nets of one run: the one that is trained, and the one that is measured and kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainers.checkpoint import Checkpoint
from trainers.config import Experiment
from trainers.models.autocast import Autocast
from trainers.models.build import build_model
from trainers.models.synchronized import synchronize_batch_norm
from trainers.ranks import Ranks


class Networks:
    """`trained` has the weights that the optimizer updates; `parallel` is the same net as the training step calls it.

    `kept` is measured after every epoch and written into checkpoints: the trained net, or the exponential moving
    average of its weights and batch-norm statistics where `optimizer.ema_decay` is given.
    """

    def __init__(self, experiment: Experiment, ranks: Ranks) -> None:
        self.trained = build_model(experiment).to(ranks.device).to(memory_format=torch.channels_last)
        if experiment.synchronize_batch_norm and ranks.world_size > 1:
            synchronize_batch_norm(self.trained)
        self._ranks = ranks
        decay = experiment.optimizer.ema_decay
        self._average: AveragedModel | None = None
        if decay is not None:
            follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(self.trained, multi_avg_fn=follow, use_buffers=True)
        lowered = Autocast(self.trained) if experiment.precision == "bfloat16" else self.trained
        self.parallel = ranks.data_parallel(lowered)

    @property
    def kept(self) -> nn.Module:
        """The net to measure and to keep."""
        return self.trained if self._average is None else self._average.module

    def after_step(self) -> None:
        """Let the average follow the weights."""
        if self._average is not None:
            self._average.update_parameters(self.trained)

    def after_epoch(self) -> None:
        """Make the batch-norm statistics of all ranks one."""
        self._ranks.average_buffers(self.trained)
        if self._average is not None:
            self._ranks.average_buffers(self._average.module)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights of the kept net: those of the trained one, if they differ."""
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
            self._average.module.load_state_dict(checkpoint.weights())
            self._average.n_averaged.fill_(1)
