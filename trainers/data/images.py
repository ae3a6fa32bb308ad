"""Image sets as the loop wants them: uint8 arrays, split once and for all, loaded by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainers import catalog
from trainers.config import Data
from trainers.data.availability import data_directory
from trainers.problems import InvalidInput


@dataclass(frozen=True)
class ImageSet:
    """uint8 images [N, H, W, C] and int64 labels [N], on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> ImageSet:
        """The rows at `indices`, copied."""
        chosen = torch.from_numpy(indices).to(self.labels.device)
        return ImageSet(self.images[chosen], self.labels[chosen])

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def floats(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` as float32 [n, C, H, W] in [0,1]."""
        return to_floats(self.images[start:stop])


@dataclass(frozen=True)
class Splits:
    """Train is trained on; validation is held out of the training set and selects; test is touched once, at the end."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def to_floats(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [0,1]."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def load_splits(data: Data) -> Splits:
    """Load a data set and cut it. Raises InvalidInput if it is not there."""
    train, test = _loader(data.name)(data, data_directory(data))
    pool, validation = stratified(train.labels, data.holdout, data.split_seed)
    if data.train_samples is not None and data.train_samples < len(pool):
        _, chosen = stratified(train.labels[torch.from_numpy(pool)], data.train_samples, data.split_seed)
        pool = pool[chosen]
    return Splits(train.select(pool), train.select(validation), test)


def stratified(labels: Tensor, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rest, chosen): `count` indices whose class shares are those of `labels`, both sorted, fixed by `seed`.

    Classes get their rounded-down share; what is left goes to the largest remainders.
    """
    classes = labels.cpu().numpy()
    if not 0 < count < len(classes):
        raise InvalidInput.single("data.holdout", f"{count}: must be between 1 and {len(classes) - 1}")
    names, sizes = np.unique(classes, return_counts=True)
    exact = sizes * count / len(classes)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(classes), count]))
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(classes == name))[:n] for name, n in zip(names, quota, strict=True)]
    )
    chosen.sort()
    return np.setdiff1d(np.arange(len(classes)), chosen), chosen


def _loader(name: str) -> Callable[[Data, Path | None], tuple[ImageSet, ImageSet]]:
    loader: Callable[[Data, Path | None], tuple[ImageSet, ImageSet]]
    loader = importlib.import_module(catalog.DATASETS[name].module).load
    return loader
