"""CIFAR-10 through torchvision's own class, decoded once into .npy files that all processes map and share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from trainers.config import Data
from trainers.data.images import DIRECTORY_VARIABLE, ImageSet
from trainers.problems import InvalidInput

_FOLDER = "cifar-10-batches-py"
_PARTS = ("train_images", "train_labels", "test_images", "test_labels")


def check(data: Data, directory: Path | None) -> None:
    """Raise InvalidInput if neither the files nor the wish to download them are there."""
    if directory is None:
        raise InvalidInput.single(
            "data.directory",
            f"not set: name the folder that holds {_FOLDER} (--data-dir, or {DIRECTORY_VARIABLE})",
        )
    if not data.download and not (directory / _FOLDER).is_dir() and not _cached(directory):
        raise InvalidInput.single(
            "data.directory", f"{str(directory)!r} holds no {_FOLDER}; set data.download=true to fetch it"
        )


def load(data: Data, directory: Path | None) -> tuple[ImageSet, ImageSet]:
    """(train, test) of CIFAR-10 from `directory`."""
    check(data, directory)
    assert directory is not None
    if not _cached(directory):
        _decode(data, directory)
    # Copy-on-write maps: shared between processes and writable in name, so torch does not warn.
    parts = [torch.from_numpy(np.load(_cache(directory) / f"{part}.npy", mmap_mode="c")) for part in _PARTS]
    return ImageSet(parts[0], parts[1]), ImageSet(parts[2], parts[3])


def _cache(directory: Path) -> Path:
    return directory / "orchestrator-cache" / "cifar10"


def _cached(directory: Path) -> bool:
    return all((_cache(directory) / f"{part}.npy").is_file() for part in _PARTS)


def _decode(data: Data, directory: Path) -> None:
    from torchvision.datasets import CIFAR10

    try:
        sets = [CIFAR10(str(directory), train=train, download=data.download) for train in (True, False)]
    except RuntimeError as error:
        raise InvalidInput.single("data.directory", f"{str(directory)!r}: {error}") from error
    arrays = [array for part in sets for array in (part.data, np.asarray(part.targets, dtype=np.int64))]
    cache = _cache(directory)
    cache.mkdir(parents=True, exist_ok=True)
    for part, array in zip(_PARTS, arrays, strict=True):
        # Several processes may decode at once: each writes its own file, the last rename wins, all are equal.
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".npy", delete=False) as file:
            np.save(file, array)
        os.replace(file.name, cache / f"{part}.npy")
