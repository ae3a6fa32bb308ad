"""Input normalization as the first layer, so that attacks work in pixels of [0,1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainers.catalog import Dataset


class Normalized(nn.Module):
    """`network((images - mean) / std)` for images [B, C, H, W] in [0,1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Raw logits [B, K]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def input_statistics(dataset: Dataset, normalization: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) by channel for `Normalized`: `standard` is the data set's, `half` 0.5 and 0.5, `none` 0 and 1."""
    mean, std = {
        "standard": (dataset.mean, dataset.std),
        "half": ((0.5,) * dataset.channels, (0.5,) * dataset.channels),
        "none": ((0.0,) * dataset.channels, (1.0,) * dataset.channels),
    }[normalization]
    return mean, std
