"""Pre-activation ResNet-18 for small images (He et al. 2016, arXiv 1603.05027), as the CO and RO papers use it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from trainers.models.batch_norm import BatchNorm2d
from trainers.models.head import Head
from trainers.models.projection import Projection
from trainers.models.stem import Stem


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice. `shortcut` says what a convolutional shortcut reads: the activated input, or the raw one."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.norm1 = BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        reshapes = stride != 1 or inputs != outputs
        self.projection = Projection(inputs, outputs, stride) if reshapes else None
        self.projects_activated = shortcut == "activated"

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        activated = F.relu(self.norm1(features))
        residual = features
        if self.projection is not None:
            residual = self.projection(activated if self.projects_activated else features)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return out + residual


def preact_resnet18(
    num_classes: int,
    channels: int,
    *,
    width: int = 64,
    blocks_per_stage: int = 2,
    shortcut: str = "activated",
    final_norm: bool = True,
) -> nn.Module:
    """Four stages of widths w, 2w, 4w, 8w. The two shortcuts are Rice et al.'s (activated) and Wong et al.'s (raw)."""
    layers: list[nn.Module] = [Stem(channels, width)]
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for block in range(blocks_per_stage):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(PreActBlock(inputs, outputs, stride, shortcut))
            inputs = outputs
    if final_norm:
        layers += [BatchNorm2d(inputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(inputs, num_classes))
