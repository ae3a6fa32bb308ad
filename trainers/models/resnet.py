"""ResNet-18 with a 3x3 stem and no max-pooling (He et al. 2016, arXiv 1512.03385), as WEAT uses it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from trainers.models.batch_norm import BatchNorm2d
from trainers.models.head import Head
from trainers.models.projection import Projection
from trainers.models.stem import Stem


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the input (through 1x1 conv-BN where the shape changes), ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(Projection(inputs, outputs, stride), BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(features)))))
        return F.relu(out + self.shortcut(features))


def resnet18(num_classes: int, channels: int, *, width: int = 64, blocks_per_stage: int = 2) -> nn.Module:
    """Four stages of widths w, 2w, 4w, 8w; adaptive pooling to 1x1, so that 64x64 images work too."""
    layers: list[nn.Module] = [
        Stem(channels, width),
        BatchNorm2d(width),
        nn.ReLU(),
    ]
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for block in range(blocks_per_stage):
            layers.append(BasicBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(inputs, num_classes))
