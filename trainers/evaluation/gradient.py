"""Our own gradient attacks of a final evaluation: what each is and where it comes from says `catalog.attacks`.

They return x* only, on batches that the caller has cut. Images are [B, C, H, W] in [0,1], epsilon is in the same unit,
steps are of ε/4 (2/255 at ε = 8/255). The model is in eval mode already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.answers import is_correct
from trainers.attacks.linf import Adversarial, ascend, bounds, uniform_start
from trainers.attacks.pgd import pgd, pgd_kl, pgd_margin, pgd_targeted
from trainers.randomness import Noise


def twenty_steps(
    attack: Callable[..., Adversarial], model: nn.Module, images: Tensor, labels: Tensor, *,
    epsilon: float, noise: Noise, **parameters: Any,
) -> Tensor:  # fmt: skip
    """Where an attack of training ends after 20 steps; `parameters` are its own."""
    attacked = attack(
        model, images, labels,
        epsilon=epsilon, step_size=epsilon / 4, steps=20, batch_norm="eval", noise=noise, **parameters,
    )  # fmt: skip
    return attacked.images


def margin_t(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, noise: Noise, steps: int, targets: int
) -> Tensor:
    """PGD that raises z_t − z_y for each of the likeliest wrong classes t in turn, from a uniform start each.

    Where the cross-entropy has no gradient left the margin has one, and the class that gives way is often not the
    likeliest. An image that one target takes is left alone by the next ones.
    """
    found, standing = images.clone(), torch.arange(len(images), device=images.device)
    with torch.no_grad():
        wrong = model(images).scatter(1, labels[:, None], -torch.inf)
    likeliest = wrong.topk(min(targets, wrong.shape[1] - 1), dim=1).indices
    for target in likeliest.unbind(1):
        # Drawn for all rows: the noise of an image does not depend on which others have fallen.
        start = uniform_start(images, epsilon, noise)
        if not len(standing):
            continue
        pair = torch.stack([target, labels], dim=1)[standing]

        def above(logits: Tensor, pair: Tensor = pair) -> Tensor:
            towards, true = logits.gather(1, pair).unbind(1)
            return (towards - true).sum()

        attacked = ascend(
            model, images[standing], start[standing], above, epsilon=epsilon, step_size=epsilon / 4, steps=steps
        )
        found[standing] = attacked.images
        with torch.no_grad():
            standing = standing[is_correct(model(attacked.images), labels[standing])]
    return found


def pgd_restarts(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, noise: Noise, steps: int, restarts: int
) -> Tensor:
    """For each image a point that fools the model, or where no restart finds one, that of highest loss.

    Restarts of Wong et al. 2020 (arXiv 2001.03994): a point that fools the model is moved no further. An image that
    one restart takes is left alone by the next ones, and counts even if a correctly classified point had the higher
    cross-entropy, as it may with more than two classes.
    """
    strongest = images.clone()
    highest = images.new_full((len(images),), -torch.inf)
    for _ in range(restarts):
        # Drawn for all rows: the noise of an image does not depend on which others have fallen.
        start = uniform_start(images, epsilon, noise)
        standing = torch.nonzero(highest < torch.inf).squeeze(1)
        if not len(standing):
            continue
        found = _step_while_correct(model, images[standing], labels[standing], start[standing], epsilon, steps)
        with torch.no_grad():
            logits = model(found)
        loss = F.cross_entropy(logits, labels[standing], reduction="none")
        loss[~is_correct(logits, labels[standing])] = torch.inf
        better = loss > highest[standing]
        strongest[standing[better]] = found[better]
        highest[standing[better]] = loss[better]
    return strongest


def _step_while_correct(
    model: nn.Module, images: Tensor, labels: Tensor, start: Tensor, epsilon: float, steps: int
) -> Tensor:
    """Signed steps of ε/4 that raise the cross-entropy; rows that are misclassified stay where they are."""
    current, (low, high) = start.clone(), bounds(images, epsilon)
    rows = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        points = current[rows].requires_grad_()
        logits = model(points)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[rows], reduction="sum"), points)
        correct = is_correct(logits, labels[rows])
        rows = rows[correct]
        if not len(rows):
            break
        moved = points.detach()[correct] + epsilon / 4 * gradient[correct].sign()
        current[rows] = torch.clamp(moved, low[rows], high[rows])
    return current


GRADIENT_ATTACKS: dict[str, Callable[..., Tensor]] = {
    "pgd20": partial(twenty_steps, pgd),
    "pgd50-10": partial(pgd_restarts, steps=50, restarts=10),
    # κ of MAIL's code (arXiv 2106.07904).
    "cw": partial(twenty_steps, pgd_margin, kappa=50.0),
    "margin-t": partial(margin_t, steps=20, targets=3),
    "pgd20-t": partial(twenty_steps, pgd_targeted),
    "kl20": partial(twenty_steps, pgd_kl),
}
