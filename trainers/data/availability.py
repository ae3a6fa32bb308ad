"""Where a data set lies and whether it can be loaded, answered without loading it and without torch."""

from __future__ import annotations

import os
from pathlib import Path

from trainers import catalog
from trainers.config import Data
from trainers.data.subset import read_subset
from trainers.problems import InvalidInput

DIRECTORY_VARIABLE = "ORCHESTRATOR_DATA"
CACHE = "orchestrator-cache"
PARTS = ("train_images", "train_labels", "test_images", "test_labels")


def data_directory(data: Data) -> Path | None:
    """Where the images of a data set that is not bundled lie: `data.directory`, or the environment."""
    directory = data.directory or os.environ.get(DIRECTORY_VARIABLE)
    return Path(os.path.expanduser(directory)).absolute() if directory else None


def check_available(data: Data) -> None:
    """Raise InvalidInput unless the data set is bundled, there, or to be downloaded, and what it names is right."""
    if catalog.DATASETS[data.name].files:
        check_directory(data)
    if data.extra is not None:
        from trainers.data.extra import check_extra

        check_extra(data)
    if data.subset is not None:
        read_subset(data.subset.file, data.subset.name, data.subset.sha256)


def check_directory(data: Data) -> None:
    """Raise InvalidInput unless a data set that is not bundled is there, decoded before, or to be downloaded."""
    dataset = catalog.DATASETS[data.name]
    wanted = " and ".join(dataset.files)
    directory = data_directory(data)
    if directory is None:
        raise InvalidInput.single(
            "data.directory", f"not set: name the folder that holds {wanted} (--data-dir, or {DIRECTORY_VARIABLE})"
        )
    if is_cached(cache_folder(directory, data.name), PARTS) or all(
        (directory / name).exists() for name in dataset.files
    ):
        return
    if not dataset.downloadable:
        raise InvalidInput.single(
            "data.directory", f"{str(directory)!r} holds no {wanted}; unpack it there: it can't be fetched from here"
        )
    if not data.download:
        raise InvalidInput.single(
            "data.directory", f"{str(directory)!r} holds no {wanted}; set data.download=true to fetch it"
        )


def is_decoded(data: Data) -> bool:
    """Whether its images can be mapped at once: bundled, or decoded before. Asked of one that is available."""
    if not catalog.DATASETS[data.name].files:
        return True
    directory = data_directory(data)
    return directory is not None and is_cached(cache_folder(directory, data.name), PARTS)


def cache_folder(directory: Path, name: str) -> Path:
    """Where the decoded arrays of what lies in `directory` are kept."""
    return directory / CACHE / name


def is_cached(folder: Path, parts: tuple[str, ...]) -> bool:
    """Whether all of them are there."""
    return all((folder / f"{part}.npy").is_file() for part in parts)
