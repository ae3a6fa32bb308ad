"""What one training step has at hand for a weighting or a regularizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.attacks.linf import Adversarial
from trainers.methods.weight_perturbation import Forward, without_statistics


def identity(value: Tensor) -> Tensor:
    """A statistic of one rank alone is that of the batch."""
    return value


@dataclass(frozen=True)
class StepTensors:
    """Logits [B, K] (the start's are detached), labels [B], input gradients [B, C, H, W]; None where nobody asked.

    `mean_over_ranks` makes a rank's detached statistic that of the global batch; alone it is the identity.
    """

    adversarial_logits: Tensor
    labels: Tensor
    natural_logits: Tensor | None = None
    start_logits: Tensor | None = None
    natural_gradient: Tensor | None = None
    noisy_gradient: Tensor | None = None
    mean_over_ranks: Callable[[Tensor], Tensor] = identity

    def required(self, name: str) -> Tensor:
        """The tensor of that name. Raises ValueError where it was not given."""
        tensor = getattr(self, name)
        if tensor is None:
            raise ValueError(f"this objective needs {name}")
        return tensor  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AttackedBatch:
    """Images [B, C, H, W] in [0,1], labels [B], what the attack found; `noisy` images where a gradient is asked for.

    `known` are tensors, by their names in StepTensors, that are as the update would compute them.
    """

    images: Tensor
    labels: Tensor
    adversarial: Adversarial
    noisy: Tensor | None
    known: Mapping[str, Tensor]


def see(
    batch: AttackedBatch, needs: frozenset[str], bare: nn.Module, forward: Forward, gradient_forward: Forward, *,
    mean_over_ranks: Callable[[Tensor], Tensor] = identity,
) -> StepTensors:  # fmt: skip
    """Everything that an objective `needs` of a batch, with the weights as they are now.

    Logits that carry gradient go through `forward`, which under DDP is not the `bare` model; those at the start leave
    no trace in its batch-norm statistics. Input gradients go through `gradient_forward`.
    """
    found, missing = dict(batch.known), needs - batch.known.keys()
    if "start_logits" in missing:
        with torch.no_grad():
            found["start_logits"] = without_statistics(bare)(batch.adversarial.start_images)
    if "natural_logits" in missing:
        found["natural_logits"] = forward(batch.images)
    found["adversarial_logits"] = forward(batch.adversarial.images)
    if "natural_gradient" in missing:
        found["natural_gradient"] = input_gradient(gradient_forward, batch.images, batch.labels, differentiable=False)
    if "noisy_gradient" in missing:
        assert batch.noisy is not None
        found["noisy_gradient"] = input_gradient(gradient_forward, batch.noisy, batch.labels, differentiable=True)
    return StepTensors(labels=batch.labels, mean_over_ranks=mean_over_ranks, **found)


def input_gradient(forward: Forward, images: Tensor, labels: Tensor, *, differentiable: bool) -> Tensor:
    """∇_x of the cross-entropy, summed over the batch [B, C, H, W]; `differentiable` with respect to the weights."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(forward(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images, create_graph=differentiable)
    return gradient


def abnormal(before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    """Which examples the attack made *easier*: cross-entropy before > after, strictly. Boolean [B], detached.

    Abnormal adversarial examples (Lin et al. 2023, arXiv 2404.08154), as DER takes them over.
    """
    with torch.no_grad():
        return F.cross_entropy(before, labels, reduction="none") > F.cross_entropy(after, labels, reduction="none")


def over_global(values: Tensor, count: Tensor) -> Tensor:
    """Σ of this rank's values / mean count over ranks: what, averaged over ranks, is the global sum / global count.

    Zero where there is nothing to count.
    """
    return values.sum() / torch.where(count > 0, count, 1.0)
