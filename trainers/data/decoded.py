"""Arrays decoded once into .npy files that all processes map and share."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainers.data.availability import is_cached

Array = np.ndarray[Any, Any]


class Decoded(NamedTuple):
    """What the `decode` of a data set gives: uint8 images [N, H, W, C] and labels [N] in 0..K-1."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def cached(folder: Path, parts: tuple[str, ...], write: Callable[[Path], None]) -> list[Array]:
    """The arrays `part`.npy of a folder, mapped; where one is missing, `write(staging)` makes them all first.

    Of several processes that come at once one writes while the others wait: what is downloaded and unpacked first has
    one place. Where the file system has no locks each writes into a folder of its own, and the last rename wins.
    """
    if not is_cached(folder, parts):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not is_cached(folder, parts):
                with tempfile.TemporaryDirectory(dir=folder) as staging:
                    write(Path(staging))
                    for part in parts:
                        os.replace(Path(staging) / f"{part}.npy", folder / f"{part}.npy")
    # Copy-on-write maps: shared between processes and writable in name, so torch does not warn.
    return [np.load(folder / f"{part}.npy", mmap_mode="c", allow_pickle=False) for part in parts]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
