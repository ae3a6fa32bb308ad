"""More images to train on, from an .npz with `image` and `label`: the form of this field's diffusion-generated sets."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from trainers import catalog
from trainers.config import Data
from trainers.data.availability import cache_folder, data_directory
from trainers.data.decoded import Array, cached
from trainers.problems import InvalidInput

_KEYS = ("image", "label")
# RuntimeError: what zipfile says of an encrypted file, or of a compression that it does not know.
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


def check_extra(data: Data) -> None:
    """Raise InvalidInput unless `data.extra` holds uint8 images [N, H, W, C] of the data set's shape and labels [N].

    Reads all labels, and of the images nothing but their description.
    """
    dataset = catalog.DATASETS[data.name]
    path = extra_path(data)
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            missing = [key for key in _KEYS if key not in keys]
            if missing:
                raise ValueError(f"has no {' and no '.join(missing)}; its keys: {', '.join(keys) or 'none'}")
            with archive.open("image.npy") as file:
                shape, dtype = _description(file)
            with archive.open("label.npy") as file:
                labels = np.lib.format.read_array(file, allow_pickle=False)
    except _BROKEN as error:
        raise InvalidInput.single("data.extra", f"{str(path)!r}: {error}") from error
    expected = (data.size, data.size, dataset.channels)
    found = []
    if dtype != np.uint8:
        found.append(f"image is {dtype}, not uint8")
    if len(shape) != 4 or shape[1:] != expected or shape[0] == 0:
        found.append(f"image is {list(shape)}, not {['N', *expected]}")
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        found.append(f"label is {labels.dtype} {list(labels.shape)}, not whole numbers {list(shape[:1])}")
    elif labels.size and (labels.min() < 0 or labels.max() >= dataset.num_classes):
        found.append(f"label is in {labels.min()}..{labels.max()}, not in 0..{dataset.num_classes - 1}")
    if found:
        raise InvalidInput.single("data.extra", f"{str(path)!r}: {'; '.join(found)} ({data.name})")


def read_extra(data: Data) -> list[Array]:
    """[images, labels] of `data.extra`, mapped; unpacked once, into the cache beside it. Raises InvalidInput."""
    check_extra(data)
    path = extra_path(data)
    status = path.stat()

    def unpack(folder: Path) -> None:
        # The members of an .npz are .npy files: copied piece by piece, for the sets can be larger than the memory.
        with zipfile.ZipFile(path) as archive:
            for key in _KEYS:
                with archive.open(f"{key}.npy") as member, (folder / f"{key}.npy").open("wb") as file:
                    shutil.copyfileobj(member, file)

    # A file that is replaced is another one.
    name = f"{path.stem}-{status.st_size}-{status.st_mtime_ns}"
    try:
        return cached(cache_folder(path.parent, name), _KEYS, unpack)
    except _BROKEN as error:
        raise InvalidInput.single("data.extra", f"{str(path)!r}: {error}") from error


def extra_path(data: Data) -> Path:
    """Where `data.extra` lies. Raises InvalidInput if it is relative to a folder that is not given."""
    assert data.extra is not None
    path = Path(os.path.expanduser(data.extra))
    if not path.is_absolute():
        directory = data_directory(data)
        if directory is None:
            raise InvalidInput.single(
                "data.extra", f"{data.extra!r} is relative to data.directory, which is not set: give the whole path"
            )
        path = directory / path
    return path


def _description(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """(shape, dtype) of the array in an .npy file, from its header alone."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
