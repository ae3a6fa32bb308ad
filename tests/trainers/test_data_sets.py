"""Every data set from files in its published layout: small ones written here, the real ones where they are at hand."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat

from trainers import catalog
from trainers.config import parse
from trainers.data.availability import DIRECTORY_VARIABLE, cache_folder, check_available
from trainers.data.batches import TrainingBatches
from trainers.data.decoded import cached
from trainers.data.images import load_splits
from trainers.problems import InvalidInput
from trainers.ranks import Ranks

ON_DISK = [name for name, row in catalog.DATASETS.items() if row.files]
WNIDS = ["n30", "n01", "n20", "n02", "n10"]  # not sorted, as in the published list


@dataclass(frozen=True)
class Published:
    """A small data set written as it is published, and what should be read from it."""

    name: str
    directory: Path
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    tolerance: int = 0

    def data(self, **fields):
        return parse({"data": {"name": self.name, "directory": str(self.directory), "holdout": 10, **fields}}).data


def random_part(count, num_classes, seed):
    source = np.random.default_rng(seed)
    return source.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), np.arange(count) % num_classes


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(name, directory, monkeypatch):
    label_key, names_key = ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    num_classes = catalog.DATASETS[name].num_classes
    train, test = random_part(2 * num_classes, num_classes, 0), random_part(num_classes, num_classes, 1)
    folder = directory / catalog.DATASETS[name].files[0]
    folder.mkdir()
    files = 5 if name == "cifar10" else 1
    cut = zip(np.split(train[0], files), np.split(train[1], files), strict=True)
    pieces = {f"train{number}": piece for number, piece in enumerate(cut)} | {"test": test}
    for file, (images, labels) in pieces.items():
        pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        entry = {"data": pixels, label_key: labels.tolist(), "coarse_labels": [0] * len(labels)}
        (folder / file).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({names_key: [str(number) for number in range(num_classes)]}))
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    monkeypatch.setattr(kind, "train_list", [[file, md5(folder / file)] for file in pieces if file != "test"])
    monkeypatch.setattr(kind, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": names_key, "md5": md5(folder / "meta")})
    return Published(name, directory, train, test)


def write_svhn(name, directory, monkeypatch):
    train, test = random_part(30, 10, 0), random_part(20, 10, 1)
    split_list = {}
    for part, (images, labels) in {"train": train, "test": test}.items():
        path = directory / f"{part}_32x32.mat"
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        split_list[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
    return Published(name, directory, train, test)


def write_tiny_imagenet(name, directory, monkeypatch):
    """Plain colors, which survive JPEG to within two levels; every fourth file is greyscale."""
    root = directory / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    levels = iter(np.random.default_rng(0).permutation(np.arange(0, 250, 4)))
    parts, lines = {"train": [], "val": []}, []

    def write(path, part, wnid, number):
        level = int(next(levels))
        grey = number % 4 == 0
        color = level if grey else (level, 255 - level, 128)
        Image.new("L" if grey else "RGB", (64, 64), color).save(path, "JPEG")
        parts[part].append(((level,) * 3 if grey else color, sorted(WNIDS).index(wnid)))

    for wnid in sorted(WNIDS):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
        for number in range(8):
            write(images / f"{wnid}_{number}.JPEG", "train", wnid, number)
    for number, wnid in enumerate(WNIDS * 2):
        write(root / "val" / "images" / f"val_{number}.JPEG", "val", wnid, number)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))

    def arrays(rows):
        images = np.array([color for color, _ in rows], dtype=np.uint8)[:, None, None].repeat(64, 1).repeat(64, 2)
        return images, np.array([label for _, label in rows])

    monkeypatch.setitem(catalog.DATASETS, name, replace(catalog.DATASETS[name], num_classes=5))
    return Published(name, directory, arrays(parts["train"]), arrays(parts["val"]), tolerance=3)


WRITERS: dict[str, Callable] = {
    "cifar10": write_cifar, "cifar100": write_cifar, "svhn": write_svhn, "tiny_imagenet": write_tiny_imagenet,
}  # fmt: skip


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """`publish(name)` writes the small data set of that name and makes the catalog's counts its own."""

    def write(name):
        published = WRITERS[name](name, tmp_path, monkeypatch)
        counts = {"num_train": len(published.train[1]), "num_test": len(published.test[1])}
        monkeypatch.setitem(catalog.DATASETS, name, replace(catalog.DATASETS[name], **counts))
        return published

    return write


def rows(images):
    return {image.tobytes() for image in images.numpy()}


def by_label_and_pixels(images, labels):
    return sorted((int(label), image.tobytes()) for image, label in zip(images, labels, strict=True))


# What is read


@pytest.mark.parametrize("name", ON_DISK)
def test_images_and_labels_are_those_of_the_files(name, publish):
    published = publish(name)
    splits = load_splits(published.data())
    assert len(splits.validation) == 10
    assert splits.test.labels.tolist() == published.test[1].tolist()
    difference = splits.test.images.numpy().astype(int) - published.test[0]
    assert np.abs(difference).max() <= published.tolerance
    images = torch.cat([splits.train.images, splits.validation.images]).numpy()
    labels = torch.cat([splits.train.labels, splits.validation.labels]).numpy()
    assert images.shape == published.train[0].shape
    if not published.tolerance:
        assert by_label_and_pixels(images, labels) == by_label_and_pixels(*published.train)
    for label in range(catalog.DATASETS[name].num_classes):
        found, expected = (
            np.sort(part[part_labels == label].mean(axis=(1, 2)), axis=0)
            for part, part_labels in ((images, labels), published.train)
        )
        assert np.abs(found - expected).max() <= published.tolerance


@pytest.mark.parametrize("name", catalog.DATASETS)
@pytest.mark.parametrize("train_samples", [None, 10])
def test_no_image_that_is_held_out_or_for_the_test_is_ever_in_a_batch(name, train_samples, publish, request):
    if name == "digits":
        data = parse({"data": {"size": 8}}).data
    else:
        data = publish(name).data(augment=False, train_samples=train_samples)
    experiment = parse({"data": data.model_dump(), "optimizer": {"batch_size": 5}})
    splits = load_splits(data)
    parts = [rows(part.images) for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    batches = TrainingBatches(splits.train, experiment, Ranks(0, 1, torch.device("cpu")))
    met = set()
    for epoch in range(3):
        for images, *_ in batches.epoch(epoch):
            met |= rows((images * 255).round().byte().permute(0, 2, 3, 1).contiguous())
    assert met <= parts[0]
    assert len(met) >= 0.9 * len(parts[0])


@pytest.mark.parametrize("name", ON_DISK)
def test_a_data_set_is_decoded_once_and_then_needs_its_files_no_more(name, publish, tmp_path):
    data = publish(name).data()
    first = load_splits(data)
    for file in catalog.DATASETS[name].files:
        path = tmp_path / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    check_available(data)
    again = load_splits(data)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part).images, getattr(again, part).images)
        assert torch.equal(getattr(first, part).labels, getattr(again, part).labels)
    assert not [path for path in (tmp_path / "orchestrator-cache" / name).iterdir() if path.suffix != ".npy"]


def test_a_cache_that_lacks_a_part_is_made_anew(publish, tmp_path):
    data = publish("cifar10").data()
    first = load_splits(data)
    (tmp_path / "orchestrator-cache" / "cifar10" / "test_labels.npy").unlink()
    assert torch.equal(load_splits(data).test.labels, first.test.labels)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="where memory lies is asked from Linux")
def test_an_epoch_draws_from_the_one_mapped_file_and_copies_none_of_its_pages(publish):
    published = publish("cifar10")
    experiment = parse({"data": published.data().model_dump(), "optimizer": {"batch_size": 5}})
    splits = load_splits(experiment.data)
    batches = TrainingBatches(splits.train.to("cpu"), experiment, Ranks(0, 1, torch.device("cpu")))
    assert len(list(batches.epoch(0))) == len(splits.train) // 5 > 0
    for images, file in ((splits.train, "train"), (splits.validation, "train"), (splits.test, "test")):
        path, memory = mapping_at(images.stored.data_ptr())
        assert path == cache_folder(published.directory, "cifar10") / f"{file}_images.npy"
        assert memory["Anonymous"] == 0  # a page that is written to becomes anonymous


def mapping_at(address):
    """(the mapped file, kB by kind) of the part of this process's memory that holds an address."""
    path, memory, inside = None, {}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if not head.endswith(":"):
            start, stop = (int(bound, 16) for bound in head.split("-"))
            inside = start <= address < stop
            path = Path(rest[-1]) if inside else path
        elif inside and rest[-1] == "kB":
            memory[head[:-1]] = int(rest[0])
    return path, memory


def decode_slowly(folder, started):
    """What a process does: say that it is here, then ask for the arrays. Returns them as lists."""

    def write(staging):
        (folder / f"written-by-{os.getpid()}").touch()
        while len(list(started.iterdir())) < 3:
            time.sleep(0.01)
        time.sleep(0.2)  # the others are at the lock, or about to be
        for part in ("images", "labels"):
            np.save(staging / f"{part}.npy", np.arange(3))

    (started / str(os.getpid())).touch()
    return [array.tolist() for array in cached(folder, ("images", "labels"), write)]


def test_of_processes_that_come_at_the_same_time_one_decodes(tmp_path):
    folder, started = tmp_path / "cache", tmp_path / "started"
    started.mkdir()
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        # One at a time and process: chunks of one, and nobody is done before all have begun.
        found = pool.starmap(decode_slowly, [(folder, started)] * 3, chunksize=1)
    assert found == [[[0, 1, 2]] * 2] * 3
    assert len(list(folder.glob("written-by-*"))) == 1


def test_splits_need_no_extra_images(publish):
    data = publish("cifar10").data(extra="absent.npz", extra_fraction=0.5)
    assert len(load_splits(data).validation) == 10
    with pytest.raises(InvalidInput, match=r"^data.extra.*absent.npz"):
        check_available(data)


# What is refused


@pytest.mark.parametrize("name", ON_DISK)
def test_data_that_are_not_there_are_an_error_that_says_what_is_expected_where(name, tmp_path, monkeypatch):
    expected = ".*".join(catalog.DATASETS[name].files)
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    with pytest.raises(InvalidInput, match=f"{expected}.*{DIRECTORY_VARIABLE}"):
        check_available(parse({"data": name}).data)
    remedy = "unpack it there" if name == "tiny_imagenet" else "download=true"
    for look in (check_available, load_splits):
        with pytest.raises(InvalidInput, match=f"^data.directory.*{tmp_path}.*{expected}.*{remedy}"):
            look(parse({"data": {"name": name, "directory": str(tmp_path)}}).data)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    with pytest.raises(InvalidInput, match=f"{tmp_path}.*{expected}"):
        check_available(parse({"data": name}).data)


@pytest.mark.parametrize("name", ON_DISK)
def test_only_what_can_be_downloaded_is_promised(name, tmp_path):
    data = parse({"data": {"name": name, "directory": str(tmp_path), "download": True}}).data
    if name == "tiny_imagenet":
        with pytest.raises(InvalidInput, match="can't be fetched"):
            check_available(data)
    else:
        check_available(data)


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(("name", "file"), [("cifar10", "train3"), ("cifar100", "meta"), ("cifar100", "test")])
def test_a_file_that_is_not_the_published_one_is_never_unpickled(name, file, publish, tmp_path):
    data = publish(name).data()
    (tmp_path / catalog.DATASETS[name].files[0] / file).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(InvalidInput, match=f"{tmp_path}.*corrupted"):
        load_splits(data)
    assert not (tmp_path / "exploded").exists()


def change_last_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


TINY = Path("tiny-imagenet-200")


@pytest.mark.parametrize(
    ("name", "file", "spoil", "says"),
    [
        ("svhn", Path("test_32x32.mat"), change_last_byte, "corrupted"),
        ("tiny_imagenet", TINY / "wnids.txt", Path.unlink, "No such file.*wnids.txt"),
        ("tiny_imagenet", TINY / "train/n02/images/n02_3.JPEG", Path.unlink, "39 training images.*40 of 5"),
        ("tiny_imagenet", TINY / "train/n02/images", shutil.rmtree, "32 training images of 4 classes"),
        ("tiny_imagenet", TINY / "val/images/val_3.JPEG", Path.unlink, "val_3.JPEG.*No such file"),
        ("tiny_imagenet", TINY / "val/images/val_3.JPEG", halve, "val_3.JPEG.*(?i:truncated)"),
        ("tiny_imagenet", TINY / "val/images/val_3.JPEG", lambda path: path.write_text("no"), "val_3.JPEG.*identify"),
        ("tiny_imagenet", TINY / "val/images/val_3.JPEG", lambda path: Image.new("L", (32, 64)).save(path), "64x64"),
        (
            "tiny_imagenet",
            TINY / "val/val_annotations.txt",
            lambda path: path.write_text(path.read_text().replace("n20", "n99")),
            "n99",
        ),
    ],
)
def test_files_that_are_missing_or_broken_are_named_and_leave_no_cache(name, file, spoil, says, publish, tmp_path):
    data = publish(name).data()
    spoil(tmp_path / file)
    with pytest.raises(InvalidInput, match=f"data.directory.*{tmp_path}.*{says}"):
        load_splits(data)
    assert not list((tmp_path / "orchestrator-cache" / name).iterdir())


# The real thing

SVHN_TEST_COUNTS = [1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595]
REAL_TEST_MEANS = {"cifar10": (0.4942, 0.4851, 0.4504), "cifar100": (0.5088, 0.4874, 0.4419)}


@pytest.mark.parametrize("name", ON_DISK)
def test_the_real_data_set_is_whole_and_balanced_as_published(name):
    row = catalog.DATASETS[name]
    data = parse({"data": name}).data
    try:
        splits = load_splits(data)
    except InvalidInput as absent:
        pytest.skip(str(absent))
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [row.num_train - row.holdout, row.holdout, row.num_test]
    assert splits.train.images.shape[1:] == (row.size, row.size, row.channels)
    if name == "svhn":
        assert torch.bincount(splits.test.labels).tolist() == SVHN_TEST_COUNTS
        return
    assert torch.bincount(splits.validation.labels).tolist() == [row.holdout // row.num_classes] * row.num_classes
    assert torch.bincount(splits.test.labels).tolist() == [row.num_test // row.num_classes] * row.num_classes
    sample = splits.test.images.float().mean(dim=(0, 1, 2)) / 255
    expected = torch.tensor(REAL_TEST_MEANS.get(name, row.mean))
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-3 if name in REAL_TEST_MEANS else 0.01)
