"""scikit-learn's 1,797 handwritten digits (real data, bundled, 8x8), shown larger by repeating pixels."""

from __future__ import annotations

from pathlib import Path

import torch

from trainers import catalog
from trainers.config import Data
from trainers.data.images import ImageSet, stratified

_TEST_SEED = 0


def load(data: Data, directory: Path | None) -> tuple[ImageSet, ImageSet]:
    """(train pool, test). Gray levels 0..16 become 0..255; `data.size` repeats each pixel size/8 times both ways."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    repeat = data.size // 8
    levels = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
    images = levels.repeat_interleave(repeat, dim=1).repeat_interleave(repeat, dim=2)[..., None]
    everything = ImageSet(images.contiguous(), torch.from_numpy(digits.target).long())
    train, test = stratified(everything.labels, catalog.DATASETS["digits"].num_test, _TEST_SEED)
    return everything.select(train), everything.select(test)
