"""The convolution of a shortcut that changes the shape."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# Vectors of AVX-512 hold as many float32.
_ENOUGH = 16


class Projection(nn.Conv2d):
    """A 1x1 convolution without bias.

    Of fewer than 16 channels, a strided one picks its pixels before it convolves: oneDNN 3.13, which computes on CPUs,
    writes beyond its buffer in the weight gradient otherwise (channels-last, features larger than 40x40).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        if self.in_channels >= _ENOUGH:
            return super().forward(features)
        down, across = self.stride
        return F.conv2d(features[:, :, ::down, ::across], self.weight, self.bias)
