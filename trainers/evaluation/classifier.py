"""What an attack takes for granted about a model's output, checked before the attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.problems import InvalidInput

# Kernels that are chosen anew may round otherwise; a random defense is far above this.
ROUNDING = 1e-4


def check_classifier(model: nn.Module, images: Tensor, num_classes: int) -> tuple[str, ...]:
    """Look at the logits of a batch of images [B, C, H, W] in [0,1]; `model` is put into eval mode.

    Returns warnings (probabilities instead of logits: their gradients vanish where the model is sure). Raises
    InvalidInput unless the output is a finite float tensor [B, num_classes], the same each time.
    """
    model.eval()
    with torch.no_grad():
        logits, again = model(images), model(images)
    expected = (len(images), num_classes)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or tuple(logits.shape) != expected:
        given = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInput.single(
            "model", f"returns {given} for {len(images)} images; expected logits {list(expected)}: the data set has "
            f"{num_classes} classes"
        )  # fmt: skip
    if not logits.isfinite().all():
        raise InvalidInput.single("model", "returns logits that are not finite")
    if (logits - again).abs().max() > ROUNDING * logits.abs().max():
        raise InvalidInput.single(
            "model", "answers differently when asked again (dropout, noise?): these attacks and their flags hold for "
            "deterministic models only"
        )  # fmt: skip
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-5):
        return ("the output looks like probabilities (rows sum to 1): attacks need logits, take the softmax away",)
    return ()
