"""Batch norm as every network of the catalog uses it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's layer without its count of batches, which nothing reads while the momentum is constant.

    The count costs one kernel a layer and forward in train mode: a ninth of all kernels of a single-step update of
    ResNet-18. Weights that bring the count along are loaded without it.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        # Not super(): PyTorch's batch norm would put the count back.
        nn.Module._load_from_state_dict(self, state_dict, prefix, *others)
