"""Whether a data set can be loaded, answered without loading it and without torch."""

from __future__ import annotations

import os
from pathlib import Path

from trainers.config import Data
from trainers.problems import InvalidInput

DIRECTORY_VARIABLE = "ORCHESTRATOR_DATA"
CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_PARTS = ("train_images", "train_labels", "test_images", "test_labels")


def data_directory(data: Data) -> Path | None:
    """Where the images of a data set that is not bundled lie: `data.directory`, or the environment."""
    directory = data.directory or os.environ.get(DIRECTORY_VARIABLE)
    return Path(directory).expanduser().absolute() if directory else None


def check_available(data: Data) -> None:
    """Raise InvalidInput if the data set is neither bundled, nor there, nor to be downloaded."""
    if data.name != "cifar10":
        return
    directory = data_directory(data)
    if directory is None:
        raise InvalidInput.single(
            "data.directory",
            f"not set: name the folder that holds {CIFAR_FOLDER} (--data-dir, or {DIRECTORY_VARIABLE})",
        )
    if not (data.download or (directory / CIFAR_FOLDER).is_dir() or cifar_is_cached(directory)):
        raise InvalidInput.single(
            "data.directory", f"{str(directory)!r} holds no {CIFAR_FOLDER}; set data.download=true to fetch it"
        )


def cifar_cache(directory: Path) -> Path:
    """Where the decoded arrays are kept."""
    return directory / "orchestrator-cache" / "cifar10"


def cifar_is_cached(directory: Path) -> bool:
    """Whether all of them are there."""
    return all((cifar_cache(directory) / f"{part}.npy").is_file() for part in CIFAR_PARTS)
