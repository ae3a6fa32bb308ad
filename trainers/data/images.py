"""Image sets as the loop wants them: uint8 arrays, split once and for all, loaded by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainers import catalog
from trainers.config import Data, Subset
from trainers.data.availability import PARTS, cache_folder, check_directory, data_directory
from trainers.data.decoded import Array, Decoded, cached
from trainers.data.extra import read_extra
from trainers.data.subset import read_subset
from trainers.problems import InvalidInput


@dataclass(frozen=True)
class ImageSet:
    """uint8 images [N, H, W, C] and int64 labels [N], on one device.

    The images are the `rows` [N] of `stored` [M, H, W, C]; None: all of them, in order. On a CPU `stored` is the mapped
    file of the whole data set: all splits, and all processes of a node, share one copy of it.
    `attacked` [N] says which images training may attack; None: all of them.
    """

    stored: Tensor
    labels: Tensor
    attacked: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images as uint8 [N, H, W, C]; a copy, unless they are all that is stored."""
        return self.stored if self.rows is None else self.stored[self.rows]

    def take(self, indices: Tensor | slice) -> Tensor:
        """The images at `indices`, or where a mask is true, as uint8 [n, H, W, C]."""
        return self.stored[indices if self.rows is None else self.rows[indices]]

    def select(self, indices: np.ndarray) -> ImageSet:
        """The set of the images at `indices`; the images themselves are not copied."""
        chosen = torch.from_numpy(indices).to(self.labels.device)
        attacked = None if self.attacked is None else self.attacked[chosen]
        rows = chosen if self.rows is None else self.rows[chosen]
        return ImageSet(self.stored, self.labels[chosen], attacked, rows)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on `device`, which receives its own images and no others."""
        if self.labels.device == torch.device(device):
            return self
        attacked = None if self.attacked is None else self.attacked.to(device)
        return ImageSet(self.images.to(device), self.labels.to(device), attacked)

    def floats(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` as float32 [n, C, H, W] in [0,1]."""
        return to_floats(self.take(slice(start, stop)))


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
    train_images, train_labels, test_images, test_labels = _arrays(data)
    train, test = _image_set(train_images, train_labels), _image_set(test_images, test_labels)
    pool, validation = cut(data, train.labels)
    if data.subset is None:
        return Splits(train.select(pool), train.select(validation), test)
    treated = np.isin(pool, _subset(data.subset, pool, validation))
    if data.subset.treatment == "drop":
        return Splits(train.select(pool[~treated]), train.select(validation), test)
    trained = replace(train.select(pool), attacked=torch.from_numpy(~treated))
    return Splits(trained, train.select(validation), test)


def cut(data: Data, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(trained on, held out): sorted indices into the whole training set with these labels, any subset apart."""
    pool, validation = stratified(labels, data.holdout, data.split_seed)
    if data.train_samples is not None and data.train_samples < len(pool):
        _, chosen = stratified(labels[torch.from_numpy(pool)], data.train_samples, data.split_seed)
        pool = pool[chosen]
    return pool, validation


def training_indices(data: Data) -> np.ndarray:
    """Where the rows of the training split lie in the whole training set; the images of a subset are among them."""
    return cut(data, torch.from_numpy(np.asarray(_arrays(data)[1])).long())[0]


def _subset(subset: Subset, pool: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Its indices. Raises InvalidInput if it was made for another split, or leaves nothing to train on."""
    indices = np.array(read_subset(subset.file, subset.name, subset.sha256))
    held_out, trained_on = np.isin(indices, validation).sum(), np.isin(pool, indices).sum()
    if held_out or not trained_on:
        raise InvalidInput.single(
            "data.subset",
            f"{held_out} of the {len(indices)} images of {subset.name!r} are held out here and {trained_on} trained "
            "on: it was made for another data set, data.holdout or data.split_seed",
        )
    if trained_on == len(pool) and subset.treatment == "drop":
        raise InvalidInput.single("data.subset", f"{subset.name!r} is all that there is to train on")
    return indices


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


def load_extra(data: Data) -> ImageSet | None:
    """The set that `data.extra` names, mapped from the disk, in no split. Raises InvalidInput if it does not fit."""
    return None if data.extra is None else _image_set(*read_extra(data))


def _image_set(images: Array, labels: Array) -> ImageSet:
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels).long())


def _arrays(data: Data) -> list[Array]:
    """The four PARTS of a data set: what is bundled is decoded anew, the rest once and for all."""
    dataset = catalog.DATASETS[data.name]
    decode: Callable[..., Decoded] = importlib.import_module(dataset.module).decode
    if not dataset.files:
        return list(decode(data))
    check_directory(data)
    directory = data_directory(data)
    assert directory is not None

    def write(folder: Path) -> None:
        decoded = decode(data, directory)
        _check_whole(decoded, dataset)
        for part, array in zip(PARTS, decoded, strict=True):
            np.save(folder / f"{part}.npy", np.ascontiguousarray(array))

    try:
        return cached(cache_folder(directory, data.name), PARTS, write)
    except (RuntimeError, OSError, ValueError) as error:
        raise InvalidInput.single("data.directory", f"{str(directory)!r}: {error}") from error


def _check_whole(decoded: Decoded, dataset: catalog.Dataset) -> None:
    """Raise ValueError if images are missing: a part of a data set must not pass for the whole."""
    for what, labels, count in (
        ("training", decoded.train_labels, dataset.num_train),
        ("test", decoded.test_labels, dataset.num_test),
    ):
        classes = len(np.unique(labels))
        if (len(labels), classes) != (count, dataset.num_classes):
            raise ValueError(
                f"{len(labels)} {what} images of {classes} classes; the whole data set has {count} of "
                f"{dataset.num_classes}"
            )
