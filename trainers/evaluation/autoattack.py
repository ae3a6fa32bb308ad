"""The attacks of AutoAttack (Croce & Hein 2020, arXiv 2003.01690), one at a time, by the package `pyautoattack`.

The package seeds itself anew for every batch, so attack by attack on the images still standing gives the flags of one
whole run with the same seed and batch size, and it can be cut into shards, which the package's own resume can't.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainers.problems import InvalidInput
from trainers.randomness import kept_random_state

# The (targeted) difference of logits ratio divides by a distance between the third (and fourth) logit and the first.
FEWEST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
TARGETS = 9


def autoattack_stage(
    model: nn.Module, pixels: Tensor, labels: Tensor, stage: str, *, epsilon: float, seed: int, batch_size: int
) -> Tensor:
    """x* [N, C, H, W] of one attack, with the settings that it has in AutoAttack's standard version.

    Targeted attacks go through all wrong classes where there are fewer than nine. Raises InvalidInput if there are too
    few for the loss.
    """
    num_classes = _check_classes(model, pixels, stage)
    with _undisturbed(model, pixels.device), _without_remarks():
        runner = _runner(model, pixels.device, epsilon, seed)
        runner.attacks_to_run = [stage]
        runner.apgd_targeted.n_target_classes = runner.fab.n_target_classes = min(TARGETS, num_classes - 1)
        adversarial, _ = runner.run_standard_evaluation(pixels.contiguous(), labels, batch_size=batch_size)
    result: Tensor = adversarial.detach()
    return result


def apgd_points(
    model: nn.Module, pixels: Tensor, labels: Tensor, stage: str, *, epsilon: float, seed: int, batch_size: int
) -> Tensor:
    """x* [N, C, H, W] of `apgd-ce` or `apgd-dlr` for every image: the point of highest loss, adversarial or not.

    As a stage of AutoAttack the same attack gives back the image where it fails or the model was wrong before. Raises
    InvalidInput if there are too few classes for the loss.
    """
    _check_classes(model, pixels, stage)
    found = []
    with _undisturbed(model, pixels.device), _without_remarks():
        runner = _runner(model, pixels.device, epsilon, seed)
        runner.apgd.loss = stage.removeprefix("apgd-")
        plain = pixels.contiguous()
        for images, truth in zip(torch.split(plain, batch_size), torch.split(labels, batch_size), strict=True):
            torch.manual_seed(seed)  # for every batch, as the package does elsewhere
            found.append(runner.apgd.perturb(images, truth, best_loss=True).detach())
    return torch.cat(found)


def _runner(model: nn.Module, device: torch.device, epsilon: float, seed: int) -> Any:
    from pyautoattack import AutoAttack

    return AutoAttack(
        _PlainGradients(model).eval(), norm="Linf", eps=epsilon, version="standard", device=str(device), seed=seed
    )


class _PlainGradients(nn.Module):
    """`model` whose gradients lie in memory as NCHW: the package flattens them by `view`.

    A channels-last network gives channels-last gradients, which differ as soon as there is more than one channel.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        if images.requires_grad:
            images = images.view_as(images)
            images.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        logits: Tensor = self._model(images)
        return logits


@contextmanager
def _without_remarks() -> Iterator[None]:
    """The package remarks on single points without a gradient, once a target: usual where a net is sure, no verdict.

    What else it warns of is heard.
    """
    logger = logging.getLogger("auto-attack")
    logger.addFilter(_is_no_remark)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_remark)


def _is_no_remark(record: logging.LogRecord) -> bool:
    return "points with zero gradient" not in record.getMessage()


def _check_classes(model: nn.Module, pixels: Tensor, stage: str) -> int:
    """How many classes the model has. Raises InvalidInput if they are too few for the loss of a stage."""
    with torch.no_grad():
        num_classes = int(model(pixels[:1]).shape[1])
    fewest = FEWEST_CLASSES.get(stage, 2)
    if num_classes < fewest:
        raise InvalidInput.single(
            "attack", f"{stage} needs at least {fewest} classes for its loss; this model has {num_classes}"
        )
    return num_classes


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """What the package would leave changed comes back as it was.

    It calls `backward`, so parameters must need no gradient; it seeds torch's global generator; and its search for
    dynamic defenses ends the tracing of debuggers and coverage.
    """
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    tracer = sys.gettrace()
    try:
        with kept_random_state(device):
            yield
    finally:
        sys.settrace(tracer)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
