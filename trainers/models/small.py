"""A three-block convolutional net that trains within a minute on one CPU core and still overfits catastrophically."""

from __future__ import annotations

from torch import nn

from trainers.models.batch_norm import BatchNorm2d
from trainers.models.head import Head
from trainers.models.stem import Stem


def small(num_classes: int, channels: int, *, width: int = 16, norm: str = "batch", stem_stride: int = 1) -> nn.Module:
    """conv-norm-ReLU blocks of width, 2·width and 4·width (strides 1, 2, 2), average pooling, linear."""

    def normed(convolution: nn.Conv2d) -> list[nn.Module]:
        outputs = convolution.out_channels
        return [convolution, BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(1, outputs), nn.ReLU()]

    return nn.Sequential(
        *normed(Stem(channels, width, stem_stride)),
        *normed(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)),
        *normed(nn.Conv2d(2 * width, 4 * width, 3, 2, 1, bias=False)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Head(4 * width, num_classes),
    )
