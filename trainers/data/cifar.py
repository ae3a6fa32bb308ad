"""CIFAR-10 through torchvision's own class, decoded once into .npy files that all processes map and share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from trainers.config import Data
from trainers.data.availability import CIFAR_PARTS, check_available, cifar_cache, cifar_is_cached
from trainers.data.images import ImageSet
from trainers.problems import InvalidInput


def load(data: Data, directory: Path | None) -> tuple[ImageSet, ImageSet]:
    """(train, test) of CIFAR-10 from `directory`."""
    check_available(data)
    assert directory is not None
    if not cifar_is_cached(directory):
        _decode(data, directory)
    # Copy-on-write maps: shared between processes and writable in name, so torch does not warn.
    parts = [torch.from_numpy(np.load(cifar_cache(directory) / f"{part}.npy", mmap_mode="c")) for part in CIFAR_PARTS]
    return ImageSet(parts[0], parts[1]), ImageSet(parts[2], parts[3])


def _decode(data: Data, directory: Path) -> None:
    from torchvision.datasets import CIFAR10

    try:
        sets = [CIFAR10(str(directory), train=train, download=data.download) for train in (True, False)]
    except RuntimeError as error:
        raise InvalidInput.single("data.directory", f"{str(directory)!r}: {error}") from error
    arrays = [array for part in sets for array in (part.data, np.asarray(part.targets, dtype=np.int64))]
    cache = cifar_cache(directory)
    cache.mkdir(parents=True, exist_ok=True)
    for part, array in zip(CIFAR_PARTS, arrays, strict=True):
        # Several processes may decode at once: each writes its own file, the last rename wins, all are equal.
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".npy", delete=False) as file:
            np.save(file, array)
        os.replace(file.name, cache / f"{part}.npy")
