"""The last layer of every network of the catalog."""

from __future__ import annotations

from torch import Tensor, nn

from trainers.models.autocast import in_float32


class Head(nn.Linear):
    """A linear layer that computes logits in float32 under autocast too.

    bfloat16 would round them to 8 bits: at the noise of 0.001 that TRADES starts from, p(x*) would be p(x) for some
    images, whose KL then has no gradient, and small differences of energies and losses would vanish.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, K], in the precision of the weights, of features [B, C]."""
        with in_float32(features.device):
            return super().forward(features.to(self.weight.dtype))
