"""Training batches made on the device: rows of a permutation, per-sample crop and flip by indexing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainers.config import Experiment
from trainers.data.images import ImageSet, load_extra, to_floats
from trainers.problems import InvalidInput
from trainers.randomness import generator
from trainers.ranks import Ranks


class TrainingBatches:
    """Iterates one epoch's batches for one rank: (images [B/world, C, H, W] in [0,1], labels, attacked).

    `attacked` [B/world] says which images are to be attacked; None: all of them.

    Every epoch is a new permutation, the same on all ranks; a global batch is cut into contiguous rows, one piece a
    rank, so ranks never overlap. A last partial batch is dropped. A sample's crop and flip do not depend on the
    number of ranks.

    With `data.extra` a fixed share of every global batch comes from that set instead, drawn with replacement as in
    Carmon et al. 2019, arXiv 1905.13736. Its rows are spread evenly over the batch, so that every rank's batch norm
    sees the same mixture. An epoch has the steps of the training set alone, whose images it meets at most once. The
    extra images stay on the disk, mapped, until drawn.
    """

    def __init__(self, data: ImageSet, experiment: Experiment, ranks: Ranks) -> None:
        self._data = data
        self._settings = experiment.data
        self._seed = experiment.seed
        self._batch_size = min(experiment.optimizer.batch_size, len(data))
        local = self._batch_size // ranks.world_size
        if local * ranks.world_size != self._batch_size:
            raise InvalidInput.single(
                "optimizer.batch_size",
                f"a batch of {self._batch_size} ({len(data)} images are left to train on) can't be divided among "
                f"{ranks.world_size} ranks",
            )
        self._own = slice(ranks.rank * local, (ranks.rank + 1) * local)
        self._extra = load_extra(self._settings)
        self._num_extra = round(self._batch_size * (self._settings.extra_fraction or 0))
        if self._extra is not None and not 0 < self._num_extra < self._batch_size:
            raise InvalidInput.single(
                "data.extra_fraction",
                f"{self._settings.extra_fraction}: {self._num_extra} images of a batch of {self._batch_size}; "
                f"at least one must come from each set",
            )

    @property
    def rows(self) -> tuple[int, int]:
        """(size of the global batch, first row of this rank)."""
        return self._batch_size, self._own.start

    def __len__(self) -> int:
        return len(self._data) // self._batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The batches of one epoch; a function of (seed, epoch) alone."""
        device = self._data.labels.device
        augmentation = generator(device, self._seed, "augmentation", epoch)
        padding = self._settings.padding
        for images, labels, attacked in self._drawn(epoch):
            if not self._settings.augment:
                yield to_floats(images), labels, attacked
                continue
            shape = (2, self._batch_size)
            top, left = torch.randint(0, 2 * padding + 1, shape, generator=augmentation, device=device)[:, self._own]
            mirrored = torch.rand(self._batch_size, generator=augmentation, device=device)[self._own] < 0.5
            flips = mirrored & self._settings.flip
            reflect = self._settings.padding_mode == "reflect"
            cropped = crop_and_flip(images, top - padding, left - padding, flips, reflect=reflect)
            yield to_floats(cropped), labels, attacked

    def _drawn(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """This rank's rows of every global batch as they are stored: uint8 [B/world, H, W, C], labels, attacked."""
        data, extra = self._data, self._extra
        device = data.labels.device
        order = torch.randperm(len(data), generator=generator("cpu", self._seed, "order", epoch)).to(device)
        if extra is None:
            for batch in range(len(self)):
                indices = order[batch * self._batch_size :][self._own]
                yield data.take(indices), data.labels[indices], self._attacked(indices)
            return
        drawn = torch.randint(
            len(extra), (len(self), self._num_extra), generator=generator("cpu", self._seed, "extra", epoch)
        )
        # Of the first n rows of a global batch, n * num_extra // batch_size are extra.
        before = torch.arange(self._own.start, self._own.stop + 1) * self._num_extra // self._batch_size
        own_extra = slice(int(before[0]), int(before[-1]))
        own_real = slice(self._own.start - own_extra.start, self._own.stop - own_extra.stop)
        # Where each row lies in the concatenation of this rank's real rows and its extra rows.
        places = before.diff().argsort(stable=True).argsort().to(device)
        for batch, chosen in enumerate(drawn):
            indices = order[batch * (self._batch_size - self._num_extra) :][own_real]
            more = chosen[own_extra]
            images = torch.cat([data.take(indices), _sent(extra.take(more), device)])
            labels = torch.cat([data.labels[indices], _sent(extra.labels[more], device)])
            attacked = self._attacked(indices)
            if attacked is not None:
                attacked = torch.cat([attacked, attacked.new_ones(len(more))])[places]
            yield images[places], labels[places], attacked

    def _attacked(self, indices: Tensor) -> Tensor | None:
        return None if self._data.attacked is None else self._data.attacked[indices]


def _sent(rows: Tensor, device: torch.device) -> Tensor:
    """`rows` on `device`. A GPU copies from pinned memory while the host goes on."""
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flips: Tensor, *, reflect: bool) -> Tensor:
    """One window of every image [B, H, W, C], as large as the image, mirrored left to right where `flips` [B].

    A window's corner lies at pixel (`top`, `left`) [B], which may be negative, nearer than the image is large. What
    is outside of the image is 0, or with `reflect` the image mirrored at its border pixel.
    """
    height, width = images.shape[1:3]
    across = torch.arange(width, device=images.device).expand(len(images), width)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.where(flips[:, None], across.flip(1), across)
    samples = torch.arange(len(images), device=images.device)
    cropped = images[samples[:, None, None], _reflected(rows, height)[:, :, None], _reflected(columns, width)[:, None]]
    if reflect:
        return cropped
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    return cropped * inside[..., None]


def _reflected(positions: Tensor, size: int) -> Tensor:
    """Positions outside of 0..size-1 folded back at the border pixels: -1 is 1, size is size - 2."""
    last = size - 1
    return last - (last - positions.abs()).abs()
