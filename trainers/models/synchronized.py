"""Batch norm over the batches of all ranks: the run no longer depends on the number of workers.

PyTorch's own SyncBatchNorm runs on GPUs alone and has no second derivative, which gradient alignment needs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.models.batch_norm import BatchNorm2d


class _MeanOverRanks(torch.autograd.Function):
    """The mean of a tensor over ranks. Its own derivative, so that it can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        mean = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(mean)
        return mean / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        result: Tensor = _MeanOverRanks.apply(gradients[0])
        return result


class SynchronizedBatchNorm2d(BatchNorm2d):
    """BatchNorm2d whose statistics in train mode are those of the global batch; ranks hold batches of equal size."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        if not self.training:
            return super().forward(input)
        # Statistics in bfloat16 would be off by a percent.
        values = input.float() if input.dtype == torch.bfloat16 else input
        mean = _mean_over_ranks(values.mean(dim=(0, 2, 3)))
        centered = values - mean[:, None, None]
        variance = _mean_over_ranks(centered.square().mean(dim=(0, 2, 3)))
        self._track(mean.detach(), variance.detach(), dist.get_world_size() * input.numel() // input.shape[1])
        normalized = centered * (variance + self.eps).rsqrt()[:, None, None]
        return (normalized * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance.to(self.running_var.dtype) * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased, self.momentum)


def _mean_over_ranks(values: Tensor) -> Tensor:
    result: Tensor = _MeanOverRanks.apply(values)
    return result


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d in place by one over all ranks that shares its parameters and buffers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is BatchNorm2d:
                synchronized = SynchronizedBatchNorm2d(child.num_features)
                synchronized.weight, synchronized.bias = child.weight, child.bias
                for buffer, value in child.named_buffers():
                    setattr(synchronized, buffer, value)
                setattr(parent, name, synchronized.train(child.training))
    return model
