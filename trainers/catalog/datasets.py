"""The data sets."""

from __future__ import annotations

from trainers.catalog.entries import Dataset

DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "trainers.data.digits", 10, 1, 32, 1500, 297, epsilon="0.12", holdout=200, augment=False, flip=False,
        mean=(0.0,), std=(1.0,),
        about="8x8 handwritten digits of scikit-learn, bundled, repeated to `size`",
    ),
    "cifar10": Dataset(
        "trainers.data.cifar", 10, 3, 32, 50_000, 10_000, epsilon="8/255", holdout=1_000, augment=True, flip=True,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616), files=("cifar-10-batches-py",),
        about="32x32 photographs, from a folder (torchvision's layout)",
    ),
    "cifar100": Dataset(
        "trainers.data.cifar", 100, 3, 32, 50_000, 10_000, epsilon="8/255", holdout=1_000, augment=True, flip=True,
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), files=("cifar-100-python",),
        about="32x32 photographs, the 100 fine classes, from a folder (torchvision's layout)",
    ),
    # SVHN's and Tiny-ImageNet's deviations are those of the papers' codes; the pixels' own are larger (.20 and .27).
    "svhn": Dataset(
        "trainers.data.svhn", 10, 3, 32, 73_257, 26_032, epsilon="8/255", holdout=1_000, augment=True, flip=False,
        mean=(0.4380, 0.4440, 0.4730), std=(0.1751, 0.1771, 0.1744), files=("train_32x32.mat", "test_32x32.mat"),
        about="32x32 house numbers, cropped to a digit, from a folder (torchvision's layout)",
    ),
    "tiny_imagenet": Dataset(
        "trainers.data.tiny_imagenet", 200, 3, 64, 100_000, 10_000, epsilon="8/255", holdout=2_000, augment=True,
        flip=True, mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262), files=("tiny-imagenet-200",),
        downloadable=False, about="64x64 photographs, its val folder as test set, from a folder (the original layout)",
    ),
}  # fmt: skip
