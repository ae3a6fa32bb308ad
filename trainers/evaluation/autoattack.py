"""The attacks of AutoAttack (Croce & Hein 2020, arXiv 2003.01690), one at a time, by the package `pyautoattack`.

The package seeds itself anew for every batch, so attack by attack on the images still standing gives the flags of one
whole run with the same seed and batch size, and it can be cut into shards, which the package's own resume can't.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainers.problems import InvalidInput

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
    from pyautoattack import AutoAttack

    with torch.no_grad():
        num_classes = model(pixels[:1]).shape[1]
    if num_classes < FEWEST_CLASSES.get(stage, 2):
        raise InvalidInput.single(
            "attack",
            f"{stage} needs at least {FEWEST_CLASSES[stage]} classes for its loss; this model has {num_classes}",
        )
    with _undisturbed(model):
        runner = AutoAttack(model, norm="Linf", eps=epsilon, version="standard", device=str(pixels.device), seed=seed)
        runner.attacks_to_run = [stage]
        runner.apgd_targeted.n_target_classes = runner.fab.n_target_classes = min(TARGETS, num_classes - 1)
        adversarial, _ = runner.run_standard_evaluation(pixels, labels, batch_size=batch_size)
    result: Tensor = adversarial.detach()
    return result


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """What the package would leave changed comes back as it was.

    It calls `backward`, so parameters must need no gradient; it seeds torch's global generator; and its search for
    dynamic defenses ends the tracing of debuggers and coverage.
    """
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    tracer = sys.gettrace()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        sys.settrace(tracer)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
