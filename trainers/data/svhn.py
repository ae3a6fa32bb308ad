"""SVHN's cropped digits through torchvision's class, which checks the files and turns the label 10 into 0."""

from __future__ import annotations

from pathlib import Path

from trainers.config import Data
from trainers.data.decoded import Decoded
from trainers.data.torchvision_datasets import torchvision_datasets


def decode(data: Data, directory: Path) -> Decoded:
    """The train and test files of `directory`; the published extra images are not used.

    Raises RuntimeError if a file is missing or is not the published one.
    """
    kind = torchvision_datasets().SVHN
    train, test = (kind(str(directory), split=part, download=data.download) for part in ("train", "test"))
    return Decoded(train.data.transpose(0, 2, 3, 1), train.labels, test.data.transpose(0, 2, 3, 1), test.labels)
