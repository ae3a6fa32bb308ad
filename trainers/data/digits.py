"""scikit-learn's 1,797 handwritten digits (real data, bundled, 8x8), shown larger by repeating pixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from trainers import catalog
from trainers.config import Data
from trainers.data.images import ImageSet, stratified

_TEST_SEED = 0


def load(data: Data, directory: Path | None) -> tuple[ImageSet, ImageSet]:
    """(train pool, test). Gray levels 0..16 become 0..255; `data.size` repeats each pixel size/8 times both ways."""
    table = torch.from_numpy(_read_table())
    repeat = data.size // 8
    levels = table[:, :-1].reshape(-1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    images = levels.repeat_interleave(repeat, dim=1).repeat_interleave(repeat, dim=2)[..., None]
    everything = ImageSet(images.contiguous(), table[:, -1].long())
    train, test = stratified(everything.labels, catalog.DATASETS["digits"].num_test, _TEST_SEED)
    return everything.select(train), everything.select(test)


def _read_table() -> np.ndarray:
    """[1797, 65]: 64 gray levels and the label, from scikit-learn's own file.

    The file is read without importing scikit-learn: that import costs every training process more than torch's.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
