"""A three-block convolutional net that trains within a minute on one CPU core and still overfits catastrophically."""

from __future__ import annotations

from torch import nn

from trainers.models.batch_norm import BatchNorm2d


def small(num_classes: int, channels: int, *, width: int = 16, norm: str = "batch", stem_stride: int = 1) -> nn.Module:
    """conv-norm-ReLU blocks of width, 2·width and 4·width (strides 1, 2, 2), average pooling, linear."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        layer = BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(1, outputs)
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), layer, nn.ReLU()]

    return nn.Sequential(
        *block(channels, width, stem_stride),
        *block(width, 2 * width, 2),
        *block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )
