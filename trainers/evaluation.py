"""Final numbers of one model: per attack, per sample, mergeable over index ranges, under a protocol key.

AutoAttack is run by the package `pyautoattack`, attack by attack on the images still standing. The package seeds
itself anew for every batch, so this gives the flags of one whole run with the same seed and batch size, and it can be
cut into shards, which the package's own resume can't. Shard length and batch size decide which random numbers an image
meets: they belong to the protocol, never to the size of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from trainers.attacks.linf import Adversarial
from trainers.attacks.pgd import pgd
from trainers.data.images import ImageSet
from trainers.evaluation_result import ATTACKS, Flags, Protocol
from trainers.pixels import PixelValue
from trainers.problems import InvalidInput, unknown_name
from trainers.randomness import Noise, generator


def stages(attack: str) -> tuple[str, ...]:
    """The attacks behind a name. Raises InvalidInput for a name that is not known."""
    if attack not in ATTACKS:
        raise InvalidInput.single("attack", unknown_name(attack, ATTACKS, "attack"))
    return ATTACKS[attack]


def evaluate_range(
    model: nn.Module, images: ImageSet, protocol: Protocol, start: int, stop: int,
    progress: Callable[[str], None] | None = None,
) -> Flags:  # fmt: skip
    """Attack images `start`..`stop` with every stage of the protocol, each stage on those still standing.

    `model` takes images in [0,1] and returns logits; it is put into eval mode. The global random state and the
    gradients of the parameters are left as they were.
    """
    pixels, labels = images.floats(start, stop), images.labels[start:stop]
    epsilon = float(PixelValue(protocol.epsilon))
    model.eval()
    standing = _correct(model, pixels, labels, protocol.batch_size)
    flags = {"clean": standing}
    for stage in stages(protocol.attack):
        if progress is not None:
            progress(stage)
        survivors = torch.nonzero(standing).squeeze(1)
        if len(survivors):
            attack = _pgd20 if stage == "pgd20" else _autoattack_stage
            adversarial = attack(model, pixels[survivors], labels[survivors], stage, epsilon, protocol, start)
            standing = standing.clone()
            standing[survivors] = _correct(model, adversarial, labels[survivors], protocol.batch_size)
        flags[stage] = standing
    return Flags(start, stop, {stage: tuple(values.tolist()) for stage, values in flags.items()})


def fixed_subset(test: ImageSet, samples: int) -> ImageSet:
    """The first `samples` of a fixed, class-mixed order of the test set; all of it if it has no more."""
    order = np.random.default_rng(0).permutation(len(test))[: min(samples, len(test))]
    return test.select(np.sort(order))


def _correct(model: nn.Module, pixels: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        predictions = [model(batch).argmax(1) for batch in torch.split(pixels, batch_size)]
    return torch.cat(predictions) == labels


def _pgd20(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    stage: str,
    epsilon: float,
    protocol: Protocol,
    start: int,
) -> Tensor:
    """PGD-20 with steps of ε/4 on the cross-entropy, uniform start, final iterate."""
    noise = Noise(generator(pixels.device, protocol.seed, stage, start))
    batches = zip(torch.split(pixels, protocol.batch_size), torch.split(labels, protocol.batch_size), strict=True)
    attacked: Sequence[Adversarial] = [
        pgd(model, x, y, epsilon=epsilon, step_size=epsilon / 4, steps=20, batch_norm="eval", noise=noise)
        for x, y in batches
    ]
    return torch.cat([adversarial.images for adversarial in attacked])


def _autoattack_stage(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    stage: str,
    epsilon: float,
    protocol: Protocol,
    start: int,
) -> Tensor:
    """One attack of AutoAttack's standard version (Croce & Hein 2020, arXiv 2003.01690)."""
    from pyautoattack import AutoAttack

    with _frozen(model):
        runner = AutoAttack(
            model, norm="Linf", eps=epsilon, version="standard", device=str(pixels.device), seed=protocol.seed
        )
        runner.attacks_to_run = [stage]
        adversarial, _ = runner.run_standard_evaluation(pixels, labels, batch_size=protocol.batch_size)
    result: Tensor = adversarial.detach()
    return result


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Parameters need no gradient (the package calls `backward`), and the global random state comes back."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    python_state = np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(python_state)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
