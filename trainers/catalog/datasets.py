"""The data sets."""

from __future__ import annotations

from trainers.catalog.entries import Dataset

DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "trainers.data.digits", 10, 1, 1500, 297, epsilon="0.12", holdout=200, augment=False, mean=(0.0,), std=(1.0,),
        about="8x8 handwritten digits of scikit-learn, bundled, repeated to `size`",
    ),
    "cifar10": Dataset(
        "trainers.data.cifar", 10, 3, 50_000, 10_000, epsilon="8/255", holdout=1_000, augment=True,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616),
        about="32x32 photographs, from a folder (torchvision's layout)",
    ),
}  # fmt: skip
