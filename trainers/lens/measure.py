"""One attack on one range of a test set, and what the net says at every point. The pixels are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainers.data.images import ImageSet
from trainers.evaluation.autoattack import apgd_points
from trainers.evaluation.ranges import attack_range
from trainers.evaluation.result import Protocol
from trainers.evaluation.searching import for_search
from trainers.lens.points import Points, points
from trainers.pixels import PixelValue
from trainers.precision import tf32

NATURAL = "clean"
TRACED = "pgd20"
# AutoAttack returns the image itself where these find nothing; for energies the point of highest loss says more.
HIGHEST_LOSS = ("apgd-ce", "apgd-dlr")


def measure_range(model: nn.Module, images: ImageSet, protocol: Protocol, start: int, stop: int) -> Points:
    """Attack images `start`..`stop`, all of them whether classified correctly or not, with the protocol's one attack.

    `clean` is the images themselves. APGD-CE and APGD-DLR give the point of highest loss of every image. APGD-T, FAB-T
    and Square give a point only where they find one that fools a net which was right before; `moved` tells. PGD-20 is
    traced. `model` takes images in [0,1] and returns logits; it is put into eval mode, nothing else of it changes.
    """
    pixels, labels = images.floats(start, stop), images.labels[start:stop]
    model.eval()
    with tf32(allowed=False):
        if protocol.attack == NATURAL:
            return points(_logits(model, pixels, protocol.batch_size), labels)
        searching = for_search(model)
        steps: list[Tensor] = []
        if protocol.attack in HIGHEST_LOSS:
            adversarial = apgd_points(
                searching, pixels, labels, protocol.attack,
                epsilon=float(PixelValue(protocol.epsilon)), seed=protocol.seed, batch_size=protocol.batch_size,
            )  # fmt: skip
        elif protocol.attack == TRACED:
            with _passes(searching) as seen:
                adversarial = attack_range(searching, pixels, labels, protocol.attack, protocol, start)
            batches = -(-len(labels) // protocol.batch_size)
            count = len(seen) // batches
            steps = [torch.cat(seen[step::count]) for step in range(count)]
        else:
            adversarial = attack_range(searching, pixels, labels, protocol.attack, protocol, start)
        logits = _logits(model, adversarial, protocol.batch_size)
        moved = (adversarial != pixels).flatten(1).any(dim=1)
    return points(logits, labels, moved=moved, steps=[*steps, logits] if steps else [])


@contextmanager
def _passes(model: nn.Module) -> Iterator[list[Tensor]]:
    """The logits of every forward pass inside the block: an attack's own passes show its iterates for nothing."""
    seen: list[Tensor] = []
    hook = model.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits.detach()))
    try:
        yield seen
    finally:
        hook.remove()


def _logits(model: nn.Module, pixels: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in torch.split(pixels, batch_size)])
