"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv 1605.07146) without dropout, as TRADES uses them."""

from __future__ import annotations

from torch import nn

from trainers.models.batch_norm import BatchNorm2d
from trainers.models.head import Head
from trainers.models.preact_resnet import PreActBlock
from trainers.models.stem import Stem


def wide_resnet(num_classes: int, channels: int, *, depth: int, widen_factor: int) -> nn.Module:
    """WRN-depth-widen_factor: three stages of (depth - 4) / 6 blocks and 16, 32, 64 times `widen_factor` channels.

    The blocks are those of the pre-activation ResNet, with shortcuts of the activated input. Convolutions start from
    N(0, 2 / fan-out), the linear layer's bias from 0, as in the papers. Adaptive pooling to 1x1, so that 64x64 images
    work too. Raises ValueError unless depth is 6n + 4.
    """
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"a wide residual network has a depth of 6n + 4, not {depth}")
    inputs = 16
    layers: list[nn.Module] = [Stem(channels, inputs)]
    for stage in range(3):
        outputs = 16 * widen_factor * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(PreActBlock(inputs, outputs, stride, shortcut="activated"))
            inputs = outputs
    linear = Head(inputs, num_classes)
    nn.init.zeros_(linear.bias)
    layers += [BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
