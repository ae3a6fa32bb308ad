"""Extra training images from an .npz: their share of every batch, where they never are, and files that do not fit."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.config import apply_values, parse
from trainers.data.availability import DIRECTORY_VARIABLE, check_available
from trainers.data.batches import TrainingBatches
from trainers.data.extra import read_extra
from trainers.data.images import load_extra, load_splits
from trainers.loop import fit
from trainers.problems import InvalidInput
from trainers.ranks import Ranks

IMAGES = np.random.default_rng(0).integers(256, size=(30, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(30) % 10


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "generated.npz"
    np.savez_compressed(path, image=IMAGES, label=LABELS.astype(np.int32))
    return path


@pytest.fixture
def mixed(file, experiment):
    """A digits experiment with batches of 12, a quarter of them from the file, and values on top."""
    settings = {"data.extra": str(file), "data.extra_fraction": 0.25, "data.holdout": 75, "optimizer.batch_size": 12}
    return lambda values=(): experiment(settings | dict(values))


def bytes_of(images):
    """One bytes object for each float image [B, C, H, W]."""
    return [image.tobytes() for image in (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()]


def epoch(settings, number=0, rank=0, world_size=1):
    train = load_splits(settings.data).train
    batches = TrainingBatches(train, settings, Ranks(rank, world_size, torch.device("cpu")))
    return [batch[:2] for batch in batches.epoch(number)]


GENERATED = {image.tobytes(): int(label) for image, label in zip(IMAGES, LABELS, strict=True)}


# Batches


@pytest.mark.parametrize(("fraction", "count"), [(0.25, 3), (0.7, 8), (0.05, 1), (0.95, 11)])
def test_every_batch_has_its_share_of_extra_images_and_an_epoch_its_steps(fraction, count, mixed, experiment):
    settings = mixed({"data.extra_fraction": fraction})
    batches = epoch(settings)
    assert len(batches) == len(epoch(experiment({"optimizer.batch_size": 12, "data.holdout": 75}))) == 256 // 12
    train = load_splits(settings.data).train
    real = {image.tobytes(): int(label) for image, label in zip(train.images.numpy(), train.labels, strict=True)}
    met = []
    for images, labels in batches:
        found = bytes_of(images)
        assert len(found) == 12
        assert sum(image in GENERATED for image in found) == count
        assert [(GENERATED | real)[image] for image in found] == labels.tolist()
        met += [image for image in found if image not in GENERATED]
    assert len(met) == len(set(met)) == len(batches) * (12 - count)
    assert set(met) <= set(real)


def test_all_extra_images_come_in_time_and_the_epochs_differ(mixed):
    drawn = [
        [image for images, _ in epoch(mixed(), number) for image in bytes_of(images) if image in GENERATED]
        for number in range(4)
    ]
    assert set().union(*drawn) == set(GENERATED)
    assert len({tuple(images) for images in drawn}) == 4


@pytest.mark.parametrize("number", [0, 3])
def test_an_epoch_can_be_repeated_alone_and_depends_on_the_seed(number, mixed):
    first, again, other = (epoch(settings, number) for settings in (mixed(), mixed(), mixed({"seed": 1})))
    assert all(torch.equal(left[0], right[0]) for left, right in zip(first, again, strict=True))
    assert all(torch.equal(left[1], right[1]) for left, right in zip(first, again, strict=True))
    assert not any(torch.equal(left[0], right[0]) for left, right in zip(first, other, strict=True))


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_the_ranks_batches_are_together_the_one_batch_and_each_rank_has_its_share(world_size, augment, mixed):
    settings = mixed({"data.extra_fraction": 5 / 12, "data.augment": augment, "data.flip": augment})
    whole = epoch(settings)
    parts = zip(*(epoch(settings, rank=rank, world_size=world_size) for rank in range(world_size)), strict=True)
    for (images, labels), pieces in zip(whole, parts, strict=True):
        assert torch.equal(torch.cat([piece[0] for piece in pieces]), images)
        assert torch.equal(torch.cat([piece[1] for piece in pieces]), labels)
        if not augment:
            shares = [sum(image in GENERATED for image in bytes_of(piece[0])) for piece in pieces]
            assert sum(shares) == 5
            assert max(shares) - min(shares) <= 1


def test_extra_images_are_in_no_split_and_change_none(mixed, experiment):
    with_extra, without = (load_splits(s.data) for s in (mixed(), experiment({"data.holdout": 75})))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(with_extra, part).images, getattr(without, part).images)


def test_training_on_extra_images_is_another_run(mixed, alone, tmp_path):
    runs = {
        "mixed": mixed({"epochs": 1}),
        "plain": mixed({"epochs": 1, "data.extra": None, "data.extra_fraction": None}),
    }
    losses = {}
    for name, settings in runs.items():
        (record,) = fit(settings, tmp_path / name, ranks=alone)
        losses[name] = record.metrics["train/loss"]
    assert losses["mixed"] != losses["plain"]
    assert runs["mixed"].digest() != runs["plain"].digest()


# Files


def test_a_file_is_unpacked_once_and_mapped(file, mixed):
    data = mixed().data
    images, labels = read_extra(data)
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert isinstance(images.base, np.memmap) or isinstance(images, np.memmap)
    (folder,) = filter(Path.is_dir, (file.parent / "orchestrator-cache").iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["image.npy", "label.npy"]
    before = (folder / "image.npy").stat().st_mtime_ns
    read_extra(data)
    assert (folder / "image.npy").stat().st_mtime_ns == before
    assert load_extra(data).labels.dtype == torch.int64


def test_a_file_that_was_replaced_is_read_anew(file, mixed):
    read_extra(mixed().data)
    np.savez(file, image=255 - IMAGES, label=LABELS)
    assert np.array_equal(read_extra(mixed().data)[0], 255 - IMAGES)


def test_a_relative_path_starts_at_the_folder_of_the_data(file, mixed, monkeypatch):
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    check_available(mixed({"data.extra": file.name, "data.directory": str(file.parent)}).data)
    with pytest.raises(InvalidInput, match=r"data.extra: 'generated.npz' is relative to data.directory"):
        check_available(mixed({"data.extra": file.name}).data)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(file.parent))
    moved = mixed({"data.extra": file.name})
    assert len(load_extra(moved.data)) == 30
    assert moved.digest() == mixed({"data.extra": file.name, "data.directory": str(file.parent)}).digest()


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": IMAGES, "labels": LABELS}, "has no image and no label; its keys: images, labels"),
        ({"image": IMAGES}, "has no label; its keys: image"),
        ({"image": IMAGES / 255, "label": LABELS}, "image is float64, not uint8"),
        ({"image": IMAGES[..., 0], "label": LABELS}, r"image is \[30, 8, 8\], not \['N', 8, 8, 1\]"),
        ({"image": IMAGES.transpose(0, 3, 1, 2), "label": LABELS}, r"image is \[30, 1, 8, 8\]"),
        ({"image": IMAGES.repeat(2, 1).repeat(2, 2), "label": LABELS}, r"image is \[30, 16, 16, 1\]"),
        ({"image": IMAGES.repeat(3, 3), "label": LABELS}, r"image is \[30, 8, 8, 3\]"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, r"image is \[0, 8, 8, 1\]"),
        ({"image": IMAGES, "label": LABELS[:29]}, r"label is int64 \[29\], not whole numbers \[30\]"),
        ({"image": IMAGES, "label": np.eye(10)[LABELS]}, r"label is float64 \[30, 10\]"),
        ({"image": IMAGES, "label": LABELS.astype(float)}, "label is float64"),
        ({"image": IMAGES, "label": LABELS + 1}, r"label is in 1..10, not in 0..9 \(digits\)"),
        ({"image": IMAGES, "label": LABELS - 1}, "label is in -1..8"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_is_expected(arrays, says, file, mixed):
    np.savez(file, **arrays)
    for look in (check_available, load_extra):
        with pytest.raises(InvalidInput, match=f"^data.extra: '{file}'.*{says}"):
            look(mixed().data)


@pytest.mark.parametrize("key", ["image", "label"])
def test_pickled_objects_are_refused_and_never_unpickled(key, file, mixed):
    bombs = np.array([Bomb(file.parent / "exploded")] * 30, dtype=object)
    np.savez(file, **{"image": IMAGES, "label": LABELS, key: bombs})
    with pytest.raises(InvalidInput, match=r"^data.extra: .*[Oo]bject"):
        load_extra(mixed().data)
    assert not (file.parent / "exploded").exists()


def spoil_pixels(path):
    """The labels and all headers stay whole."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("image.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 500] ^= 1
    path.write_bytes(content)


def encrypt(path):
    """The headers say so of every member: the lowest bit of the flags, byte 8 of an entry in the directory."""
    content = bytearray(path.read_bytes())
    entry = content.find(b"PK\x01\x02")
    while entry >= 0:
        content[entry + 8] |= 1
        entry = content.find(b"PK\x01\x02", entry + 1)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not a zip file"),
        (lambda path: path.write_bytes(b""), "not a zip file"),
        (lambda path: np.save(path.open("wb"), IMAGES), "not a zip file"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "no image and no label; its keys: none"),
        (spoil_pixels, "Bad CRC"),
        (encrypt, "is encrypted"),
    ],
)
def test_a_broken_file_is_named_and_leaves_no_cache(spoil, says, file, mixed):
    np.savez(file, image=IMAGES, label=LABELS)
    spoil(file)
    with pytest.raises(InvalidInput, match=f"^data.extra: '{file}'.*{says}"):
        load_extra(mixed().data)
    assert not list(file.parent.glob("orchestrator-cache/*/*"))


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_share_that_leaves_one_set_out_of_a_batch_is_refused(fraction, mixed):
    with pytest.raises(InvalidInput, match=f"data.extra_fraction: {fraction}.*batch of 12"):
        epoch(mixed({"data.extra_fraction": fraction}))


@pytest.mark.parametrize(
    ("values", "field", "says"),
    [
        ({"data.extra": "more.npz"}, "data.extra_fraction", "is missing: the share"),
        ({"data.extra_fraction": 0.5}, "data.extra", "is missing: the .npz"),
        ({"data.extra": "more.npz", "data.extra_fraction": 1.0}, "data.extra_fraction", "1.0"),
        ({"data.extra": "more.npz", "data.extra_fraction": 0}, "data.extra_fraction", "0"),
        ({"data.extra": "", "data.extra_fraction": 0.5}, "data.extra", "''"),
        (
            {"data.extra": "more.npz", "data.extra_fraction": 0.02, "optimizer.batch_size": 16},
            "data.extra_fraction",
            "0.02: 0 images of a batch of 16",
        ),
    ],
)
def test_extra_images_and_their_share_belong_together(values, field, says):
    with pytest.raises(InvalidInput) as caught:
        parse(apply_values({}, values))
    (problem,) = caught.value.problems
    assert problem.field == field
    assert says in problem.message
