"""Training batches made on the device: one gather per batch, per-sample crop and flip by indexing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainers.config import Experiment
from trainers.data.images import ImageSet, to_floats
from trainers.randomness import generator
from trainers.ranks import Ranks

PADDING = 4


class TrainingBatches:
    """Iterates one epoch's batches for one rank: (images [B/world, C, H, W] in [0,1], labels).

    Every epoch is a new permutation, the same on all ranks; a global batch is cut into contiguous rows, one piece a
    rank, so ranks never overlap. A last partial batch is dropped. A sample's crop and flip do not depend on the
    number of ranks.
    """

    def __init__(self, data: ImageSet, experiment: Experiment, ranks: Ranks) -> None:
        self._data = data
        self._experiment = experiment
        self._ranks = ranks
        self._batch_size = min(experiment.optimizer.batch_size, len(data))
        self._local = self._batch_size // ranks.world_size
        if self._local * ranks.world_size != self._batch_size:
            raise ValueError(f"a batch of {self._batch_size} can't be divided among {ranks.world_size} ranks")
        padding = [0, 0, PADDING, PADDING, PADDING, PADDING]
        augment = experiment.data.augment
        self._padded = torch.nn.functional.pad(data.images, padding) if augment else data.images

    @property
    def rows(self) -> tuple[int, int]:
        """(size of the global batch, first row of this rank)."""
        return self._batch_size, self._ranks.rank * self._local

    def __len__(self) -> int:
        return len(self._data) // self._batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch; a function of (seed, epoch) alone."""
        device = self._data.labels.device
        seed = self._experiment.seed
        order = torch.randperm(len(self._data), generator=generator("cpu", seed, "order", epoch)).to(device)
        augmentation = generator(device, seed, "augmentation", epoch)
        first = self.rows[1]
        for batch in range(len(self)):
            global_indices = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            own = slice(first, first + self._local)
            indices = global_indices[own]
            labels = self._data.labels[indices]
            if not self._experiment.data.augment:
                yield to_floats(self._padded[indices]), labels
                continue
            shape = (2, self._batch_size)
            draws = torch.randint(0, 2 * PADDING + 1, shape, generator=augmentation, device=device)[:, own]
            flips = torch.rand(self._batch_size, generator=augmentation, device=device)[own] < 0.5
            yield self._crop_and_flip(indices, draws[0], draws[1], flips), labels

    def _crop_and_flip(self, indices: Tensor, top: Tensor, left: Tensor, flips: Tensor) -> Tensor:
        height, width = self._data.images.shape[1:3]
        rows = top[:, None] + torch.arange(height, device=top.device)
        columns = torch.arange(width, device=top.device).expand(len(indices), width)
        columns = left[:, None] + torch.where(flips[:, None], columns.flip(1), columns)
        return to_floats(self._padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]])
