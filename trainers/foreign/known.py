"""Foreign weights in an architecture of the catalog."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers import catalog
from trainers.catalog import Dataset
from trainers.foreign.layouts import our_names
from trainers.foreign.weights import read_weights, unwrapped
from trainers.models.normalize import Normalized, input_statistics
from trainers.problems import InvalidInput

_MEAN, _DEVIATION = ("mean", "mu"), ("std", "sigma")
# Wide residual networks after the code of TRADES carry a first stage that no forward uses; nothing reads the count of
# batches while the momentum is constant.
_UNUSED = re.compile(r"(.+\.)?sub_block1\.|.*num_batches_tracked$")
SHOWN = 3
# Statistics are written with four decimals or fewer in some places, and in full in others.
WRITTEN = 5e-4


def known_model(
    file: Path, architecture: str, options: Mapping[str, Any], dataset: Dataset, normalization: str
) -> nn.Module:
    """The network of the catalog with the weights of `file`, on images in [0,1], in eval mode.

    `options` are all parameters of the architecture. `normalization` is what stands before the network: the data set's
    mean and deviation (`standard`), 0.5 and 0.5 (`half`), nothing (`none`), or the buffers mean/mu and std/sigma that
    the file brings along (`checkpoint`); a file that brings some and is given something else is refused. Raises
    InvalidInput, naming tensors that are missing, unexpected, or of another shape.
    """
    weights = unwrapped(read_weights(file))
    brought = {name: tensor for name, tensor in weights.items() if name.split(".")[-1] in (*_MEAN, *_DEVIATION)}
    mean, std = _statistics(file, brought, dataset, normalization)
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = catalog.MODELS[architecture].load()(dataset.num_classes, dataset.channels, **options)
    used = {name: tensor for name, tensor in weights.items() if name not in brought and not _UNUSED.match(name)}
    network.load_state_dict(_fitted(file, _without_common_prefix(used), network, architecture, options))
    return Normalized(network, mean, std).eval()


def _without_common_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the leading components that all of them share: the attributes of wrappers around the network."""
    stripped = dict(weights)
    while len({name.partition(".")[0] for name in stripped}) == 1 and all("." in name for name in stripped):
        stripped = {name.partition(".")[2]: tensor for name, tensor in stripped.items()}
    return stripped


def _fitted(
    file: Path, weights: Mapping[str, Tensor], network: nn.Module, architecture: str, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    ours = network.state_dict()
    fitting: dict[str, str] = {}
    for name, our in our_names(architecture, weights, ours).items():
        if our in ours and our not in fitting.values():
            fitting[name] = our
    found = {our: weights[name] for name, our in fitting.items()}
    missing = [name for name in ours if name not in found]
    unexpected = [name for name in weights if name not in fitting]
    misshapen = [
        f"{name} {list(weights[name].shape)} instead of {list(ours[our].shape)}"
        for name, our in fitting.items()
        if weights[name].shape != ours[our].shape
    ]
    problems = [
        f"{len(which)} {what}: {', '.join(which[:SHOWN])}{', …' if len(which) > SHOWN else ''}"
        for what, which in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if which
    ]
    if problems:
        chosen = ", ".join(f"{name}={value}" for name, value in options.items()) or "none"
        raise InvalidInput.single(
            str(file), f"does not fit {architecture}: {'; '.join(problems)}. Its options: {chosen} (--model-option); "
            "classes and channels are the data set's (--data); anything else goes by --model FILE.py:FACTORY"
        )  # fmt: skip
    return found


def _statistics(
    file: Path, brought: Mapping[str, Tensor], dataset: Dataset, normalization: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) by channel."""
    own = _brought_statistics(file, brought, dataset)
    if normalization == "checkpoint":
        if own is None:
            raise InvalidInput.single(
                "--normalization", f"checkpoint: {file} holds no mean and deviation; say standard, half or none"
            )
        return own
    stated = input_statistics(dataset, normalization)
    if own is not None and any(
        abs(one - other) > WRITTEN
        for ours, theirs in zip(stated, own, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ):
        raise InvalidInput.single(
            "--normalization", f"{normalization} is mean {_numbers(stated[0])}, deviation {_numbers(stated[1])}, but "
            f"{file} holds mean {_numbers(own[0])}, deviation {_numbers(own[1])}; take those with checkpoint"
        )  # fmt: skip
    return stated


def _brought_statistics(
    file: Path, brought: Mapping[str, Tensor], dataset: Dataset
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not brought:
        return None
    means = [tensor for name, tensor in brought.items() if name.split(".")[-1] in _MEAN]
    deviations = [tensor for name, tensor in brought.items() if name.split(".")[-1] in _DEVIATION]
    if len(means) != 1 or len(deviations) != 1 or {means[0].numel(), deviations[0].numel()} != {dataset.channels}:
        raise InvalidInput.single(
            str(file), f"holds {', '.join(brought)}, which is not one mean and one deviation for each channel"
        )
    return tuple(means[0].flatten().tolist()), tuple(deviations[0].flatten().tolist())


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
