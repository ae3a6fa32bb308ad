"""CIFAR-10 and CIFAR-100 (fine labels) through torchvision's classes, which check the files before unpickling them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainers.config import Data
from trainers.data.decoded import Decoded
from trainers.data.torchvision_datasets import torchvision_datasets


def decode(data: Data, directory: Path) -> Decoded:
    """All images of `directory`. Raises RuntimeError if a file is missing or is not the published one."""
    datasets = torchvision_datasets()
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data.name]
    train, test = (kind(str(directory), train=part, download=data.download) for part in (True, False))
    return Decoded(train.data, np.asarray(train.targets), test.data, np.asarray(test.targets))
