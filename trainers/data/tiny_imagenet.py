"""Tiny-ImageNet-200 from its JPEG files. A class's index is its place in the sorted list of WordNet ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainers.config import Data
from trainers.data.decoded import Array, Decoded

_SIZE = 64


def decode(data: Data, directory: Path) -> Decoded:
    """The train folder, and the val folder as test set: the test folder has no labels.

    Raises OSError if a file is missing or is no picture, ValueError if one has another size or an unknown class.
    """
    root = directory / "tiny-imagenet-200"
    classes = {name: index for index, name in enumerate(sorted((root / "wnids.txt").read_text().split()))}
    train = [(path, name) for name in classes for path in sorted((root / "train" / name / "images").glob("*.JPEG"))]
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
    rows = [line.split("\t")[:2] for line in lines if line.strip()]
    test = [(root / "val" / "images" / file, name) for file, name in rows]
    unknown = {name for _, name in test} - set(classes)
    if unknown:
        raise ValueError(f"val_annotations.txt has classes that wnids.txt has not: {', '.join(sorted(unknown)[:5])}")
    return Decoded(
        _pictures([path for path, _ in train]), np.array([classes[name] for _, name in train]),
        _pictures([path for path, _ in test]), np.array([classes[name] for _, name in test]),
    )  # fmt: skip


def _pictures(paths: Sequence[Path]) -> Array:
    """uint8 [N, 64, 64, 3]. Some of the files are greyscale."""
    from PIL import Image

    images = np.empty((len(paths), _SIZE, _SIZE, 3), dtype=np.uint8)
    for image, path in zip(images, paths, strict=True):
        try:
            with Image.open(path) as picture:
                size, pixels = picture.size, np.asarray(picture.convert("RGB"))
        except OSError as error:
            raise OSError(f"{path}: {error}") from error
        if size != (_SIZE, _SIZE):
            raise ValueError(f"{path} is not {_SIZE}x{_SIZE}")
        image[:] = pixels
    return images
