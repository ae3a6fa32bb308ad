"""What an attack takes for granted about a model's output, checked before the attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainers.problems import InvalidInput

# Kernels that are chosen anew may round otherwise; a random defense is far above this.
ROUNDING = 1e-4


def check_classifier(model: nn.Module, images: Tensor, num_classes: int, *, gradients: bool) -> tuple[str, ...]:
    """Look at the logits of a batch of float32 images [B, C, H, W] in [0,1]; `model` is put into eval mode.

    Returns warnings (probabilities instead of logits: their gradients vanish where the model is sure). Raises
    InvalidInput unless the output is a finite float32 tensor [B, num_classes], the same each time and, where
    `gradients` are followed, differentiable at the images; also for whatever goes wrong in the model.
    """
    model.eval()
    with _failures_named(images), torch.no_grad():
        logits, again = model(images), model(images)
    expected = (len(images), num_classes)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or tuple(logits.shape) != expected:
        given = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInput.single(
            "model", f"returns {given} for {len(images)} images; expected logits {list(expected)}: the data set has "
            f"{num_classes} classes"
        )  # fmt: skip
    if logits.dtype != torch.float32:
        raise InvalidInput.single(
            "model", f"returns logits of {logits.dtype}; expected torch.float32, as its images are and the protocol "
            "says: let its forward pass end with .float()"
        )  # fmt: skip
    if not logits.isfinite().all():
        raise InvalidInput.single("model", "returns logits that are not finite")
    if (logits - again).abs().max() > ROUNDING * logits.abs().max():
        raise InvalidInput.single(
            "model", "answers differently when asked again (dropout, noise?): these attacks and their flags hold for "
            "deterministic models only"
        )  # fmt: skip
    if gradients and not _has_gradient(model, images[:1]):
        raise InvalidInput.single(
            "model", "has no gradient at the images (torch.no_grad or detach in its forward pass?), and every attack "
            "but square follows it, as generate does: let it through, or say --attack square"
        )  # fmt: skip
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-5):
        return ("the output looks like probabilities (rows sum to 1): attacks need logits, take the softmax away",)
    return ()


def _has_gradient(model: nn.Module, images: Tensor) -> bool:
    images = images.clone().requires_grad_()
    with _failures_named(images), torch.enable_grad():
        logits = model(images)
        # Parameters alone make logits differentiable as well, so the gradient itself is asked for.
        return logits.requires_grad and torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is not None


@contextmanager
def _failures_named(images: Tensor) -> Iterator[None]:
    """What the model's own code raises is said of the model."""
    try:
        yield
    except Exception as error:
        raise InvalidInput.single(
            "model",
            f"fails on float32 images {list(images.shape)}, which it has to take: {type(error).__name__}: {error}",
        ) from error
