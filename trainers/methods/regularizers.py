"""Regularizers: a scalar added to the batch loss.

Under DDP the losses of the ranks are averaged. What is no plain mean over the batch (a share, a mean over a subset)
asks for its global value, so that the average over ranks is the term of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.energy import delta_energies
from trainers.methods.step_tensors import StepTensors, abnormal, over_global


def der(
    step: StepTensors,
    *,
    beta: float,
    gamma: float,
    samples: str = "abnormal",
    reference: str = "start",
    divide_by: str = "batch",
    detach_natural: bool = False,
) -> Tensor:
    """β/B · Σ_{i in S} max(ΔE(x_i)² + ΔE(x_i,y_i)² − γ, 0): Delta Energy Regularizer (arXiv 2505.22486).

    S is the abnormal examples of the batch (single-step methods) or all of it (multi-step, late epochs). Stated by
    the paper: the squared norm of the two deltas, the hinge at γ, S. Ours, and so parameters where they can be: the
    hinge per sample, the division by B, the loss at the start of the attack as the `reference` of abnormality,
    gradients on both sides.
    """
    natural = step.required("natural_logits")
    delta_marginal, delta_joint = delta_energies(
        natural.detach() if detach_natural else natural, step.adversarial_logits, step.labels
    )
    hinge = (delta_marginal.square() + delta_joint.square() - gamma).clamp(min=0)
    if samples == "all":
        return beta * hinge.mean()
    before = natural if reference == "natural" else step.required("start_logits")
    selected = abnormal(before, step.adversarial_logits, step.labels).to(hinge.dtype)
    if divide_by == "batch":
        return beta * (hinge * selected).mean()
    return beta * over_global(hinge * selected, step.mean_over_ranks(selected.sum()))


def aaer(
    step: StepTensors,
    *,
    strength: float,
    loss_strength: float,
    variation_strength: float,
    loss_gradient: bool = False,
) -> Tensor:
    """λ1 |A|/B · [λ2 C + λ3 max(V_A − V_N, 0)] (Lin et al. 2023, arXiv 2404.08154).

    `strength`, `loss_strength` and `variation_strength` are λ1, λ2 and λ3. A are the abnormal examples, those whose
    loss fell from the attack's start x+η to x*, N the others. C is the mean fall of the loss over A, V the mean squared
    distance of the logits at the start and at x*; V_N is detached. Zero where A or N is empty. In the published code
    both losses in C are detached, so that λ2 moves no weight; `loss_gradient` lets the loss at x* carry gradient, as
    the paper's formula reads.
    """
    start, adversarial = step.required("start_logits"), step.adversarial_logits
    before = F.cross_entropy(start, step.labels, reduction="none")
    after = F.cross_entropy(adversarial, step.labels, reduction="none")
    in_a = (before > after).to(after.dtype)
    in_n = 1 - in_a
    distance = (start - adversarial).square().sum(dim=1)
    size_a, size_n = step.mean_over_ranks(in_a.sum()), step.mean_over_ranks(in_n.sum())
    variation_n = step.mean_over_ranks(over_global((distance * in_n).detach(), size_n))
    variation_a = over_global(distance * in_a, size_a)
    excess = step.mean_over_ranks(variation_a.detach()) > variation_n
    fall = over_global((before - (after if loss_gradient else after.detach())) * in_a, size_a)
    term = loss_strength * fall + variation_strength * torch.where(excess, variation_a - variation_n, 0.0)
    return torch.where((size_a > 0) & (size_n > 0), strength * size_a / len(in_a) * term, 0.0)


def grad_align(step: StepTensors, *, strength: float) -> Tensor:
    """λ (1 − mean_i cos(∇ℓ(x_i), ∇ℓ(x_i + η_i))) (Andriushchenko & Flammarion 2020, arXiv 2007.02617).

    The gradient at x is detached, that at x + η keeps its graph. Samples with a zero gradient do not count; zero
    where none is left.
    """
    at_image = step.required("natural_gradient").flatten(1)
    at_noise = step.required("noisy_gradient").flatten(1)
    norms = at_image.norm(dim=1), at_noise.norm(dim=1)
    valid = (norms[0] > 0) & (norms[1] > 0)
    # Each divided by its own norm: the product of two tiny norms is no float32.
    at_image = at_image / torch.where(valid, norms[0], 1.0)[:, None]
    at_noise = at_noise / torch.where(valid, norms[1], 1.0)[:, None]
    cosines = torch.where(valid, (at_image * at_noise).sum(dim=1), 0.0)
    count = step.mean_over_ranks(valid.sum().to(cosines.dtype))
    return torch.where(count > 0, strength * (1 - over_global(cosines, count)), 0.0)
