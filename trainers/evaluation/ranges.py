"""Attack one range of a test set, stage by stage, each stage on the images that stand after the one before.

Shard length and batch size decide which random numbers an image meets: they belong to the protocol, never to the size
of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from trainers.answers import is_correct
from trainers.catalog.attacks import stages
from trainers.config import Data
from trainers.data.images import ImageSet, load_splits
from trainers.evaluation.autoattack import autoattack_stage
from trainers.evaluation.gradient import GRADIENT_ATTACKS
from trainers.evaluation.result import Flags, Protocol, subset_indices
from trainers.evaluation.searching import for_fast_search, for_search
from trainers.pixels import PixelValue
from trainers.precision import tf32
from trainers.randomness import Noise, generator


def evaluate_range(
    model: nn.Module, images: ImageSet, protocol: Protocol, start: int, stop: int,
    progress: Callable[[str], None] | None = None, known: Flags | None = None,
    keep: Callable[[Flags], None] | None = None,
) -> Flags:  # fmt: skip
    """Attack images `start`..`stop` with every stage of the protocol, each stage on those still standing.

    `model` takes images in [0,1] and returns logits; it is put into eval mode. The global random state and the
    gradients of the parameters are left as they were. `progress` hears of a stage that begins, `keep` gets the flags
    so far when one ends; given back as `known`, those stages are not attacked again. Raises InvalidInput if the model
    has too few classes for a stage.
    """
    pixels, labels = images.floats(start, stop), images.labels[start:stop]
    model.eval()
    searching = [for_fast_search(model), for_search(model)] if protocol.is_fast else [for_search(model)]
    done = {} if known is None else {stage: torch.tensor(values) for stage, values in known.standing.items()}
    with tf32(allowed=False):
        standing = _correct(model, pixels, labels, protocol.batch_size)
        flags = {"clean": standing}
        for stage in stages(protocol.attack):
            if stage in done:
                flags[stage] = standing = done[stage].to(labels.device)
                continue
            if progress is not None:
                progress(stage)
            survivors = torch.nonzero(standing).squeeze(1)
            if len(survivors):
                standing = standing.clone()
                standing[survivors] = _withstand(
                    model, searching, pixels[survivors], labels[survivors], stage, protocol, start
                )
            flags[stage] = standing
            if keep is not None:
                keep(_as_flags(start, stop, flags))
    return _as_flags(start, stop, flags)


def _withstand(
    model: nn.Module, searching: Sequence[nn.Module], pixels: Tensor, labels: Tensor, stage: str, protocol: Protocol,
    start: int,
) -> Tensor:  # fmt: skip
    """Whether each image [N] stands after one stage; `model` judges what was found in the first copy.

    An image that fools this copy and not the model is attacked again in the next copy: what an attack looks for in
    the wrong place says nothing.
    """
    copy, *others = searching
    adversarial = attack_range(copy, pixels, labels, stage, protocol, start)
    standing = _correct(model, adversarial, labels, protocol.batch_size)
    if others:
        disputed = torch.nonzero(standing & ~_correct(copy, adversarial, labels, protocol.batch_size)).squeeze(1)
        if len(disputed):
            standing[disputed] = _withstand(model, others, pixels[disputed], labels[disputed], stage, protocol, start)
    return standing


def evaluation_images(data: Data, samples: int, split: str = "test") -> ImageSet:
    """The first `samples` of the test images, or of the `held-out` ones, in their fixed order.

    Raises InvalidInput if the data set is not there. A subset of the training images, whose file may be gone, is
    nothing to either split.
    """
    splits = load_splits(data.model_copy(update={"subset": None}))
    return fixed_subset(splits.validation if split == "held-out" else splits.test, samples)


def fixed_subset(test: ImageSet, samples: int) -> ImageSet:
    """The first `samples` of a fixed, class-mixed order of the test set; all of it if it has no more."""
    return test.select(subset_indices(len(test), samples))


def _as_flags(start: int, stop: int, standing: Mapping[str, Tensor]) -> Flags:
    return Flags(start, stop, {stage: tuple(values.tolist()) for stage, values in standing.items()})


def _correct(model: nn.Module, pixels: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Whether each image is classified correctly; an answer that is not finite is none."""
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in torch.split(pixels, batch_size)])
    return is_correct(logits, labels)


def attack_range(
    model: nn.Module, pixels: Tensor, labels: Tensor, stage: str, protocol: Protocol, start: int
) -> Tensor:
    """x* [N, C, H, W] of one stage on images of the range that begins at `start`. `model` is in eval mode already."""
    epsilon = float(PixelValue(protocol.epsilon))
    if stage not in GRADIENT_ATTACKS:
        return autoattack_stage(
            model, pixels, labels, stage, epsilon=epsilon, seed=protocol.seed, batch_size=protocol.batch_size
        )
    noise = Noise(generator(pixels.device, protocol.seed, stage, start))
    batches = zip(torch.split(pixels, protocol.batch_size), torch.split(labels, protocol.batch_size), strict=True)
    attack = GRADIENT_ATTACKS[stage]
    return torch.cat([attack(model, x, y, epsilon=epsilon, noise=noise) for x, y in batches])
