"""The first convolution of every network of the catalog."""

from __future__ import annotations

from torch import Tensor, nn

from trainers.models.autocast import in_float32


class Stem(nn.Conv2d):
    """A 3x3 convolution of the image that computes in float32 under autocast too.

    bfloat16 would round pixels by up to half of 1/255: an attack's last steps would not be seen, or be seen as larger.
    """

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, width, 3, stride, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, width, H / stride, W / stride]."""
        with in_float32(images.device):
            return super().forward(images)
