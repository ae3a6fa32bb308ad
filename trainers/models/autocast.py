"""Computing in bfloat16 with float32 weights, losses and attack steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Autocast(nn.Module):
    """`module` under bfloat16 autocast; its logits come back in float32, in which `Head` has computed them.

    Each forward opens its own context: casts of weights that were made without gradient in an attack are not kept
    for the update.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] in float32 of images [B, C, H, W]."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            logits: Tensor = self.module(images)
        return logits.float()


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    """What computes in the precision of its arguments inside the block, under autocast too.

    The meta device has no autocast; PyTorch 2.11 can compile this question, and not `is_autocast_available`.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
