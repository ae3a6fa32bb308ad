"""Random numbers that depend on (seed, purpose, epoch) and on nothing else.

Every stream is derived, never advanced across epochs: a resumed run draws what an uninterrupted one draws, diagnostics
can't disturb training, and there is no generator state to store. Noise is drawn for the whole global batch and each
rank keeps its own rows, so the numbers do not depend on the number of workers either.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for one purpose; different purposes and indices give independent streams."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *indices])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device | str, seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A torch generator on `device` for one purpose."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *indices))


@contextmanager
def kept_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Torch's global random state, on the CPU and on `device` (default: the current GPU, if CUDA is in use)."""
    if device is None and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        device = torch.device("cuda", torch.cuda.current_device())
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        yield


@dataclass(frozen=True)
class Noise:
    """Draws for a global batch of `rows` samples and keeps those from `first` on. Alone: `Noise(generator)`."""

    generator: torch.Generator
    rows: int | None = None
    first: int = 0

    def uniform(self, like: Tensor, low: float, high: float) -> Tensor:
        """U(low, high) of the shape of `like` [B, ...]."""
        return self._own(like, self._empty(like).uniform_(low, high, generator=self.generator))

    def normal(self, like: Tensor, std: float) -> Tensor:
        """N(0, std²) of the shape of `like` [B, ...]."""
        return self._own(like, self._empty(like).normal_(0.0, std, generator=self.generator))

    def _empty(self, like: Tensor) -> Tensor:
        rows = len(like) if self.rows is None else self.rows
        return torch.empty((rows, *like.shape[1:]), device=like.device, dtype=like.dtype)

    def _own(self, like: Tensor, drawn: Tensor) -> Tensor:
        return drawn[self.first : self.first + len(like)]
