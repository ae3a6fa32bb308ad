"""scikit-learn's 1,797 handwritten digits (real data, bundled, 8x8), shown larger by repeating pixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from trainers import catalog
from trainers.config import Data
from trainers.data.decoded import Decoded
from trainers.data.images import stratified

_TEST_SEED = 0


def decode(data: Data) -> Decoded:
    """Gray levels 0..16 become 0..255; `data.size` repeats each pixel size/8 times both ways."""
    table = _read_table()
    repeat = data.size // 8
    levels = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    images = levels.repeat(repeat, axis=1).repeat(repeat, axis=2)[..., None]
    labels = table[:, -1].astype(np.int64)
    train, test = stratified(torch.from_numpy(labels), catalog.DATASETS["digits"].num_test, _TEST_SEED)
    return Decoded(images[train], labels[train], images[test], labels[test])


def _read_table() -> np.ndarray:
    """[1797, 65]: 64 gray levels and the label, from scikit-learn's own file.

    The file is read without importing scikit-learn: that import costs every training process more than torch's.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
