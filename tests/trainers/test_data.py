"""Splits that never overlap, pixels as they are, and batches that do not depend on the number of ranks."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from trainers.data.batches import TrainingBatches
from trainers.data.images import ImageSet, cut, load_splits, stratified
from trainers.problems import InvalidInput
from trainers.ranks import Ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures():
    """40 images of random pixels: no two crops of them are alike."""
    source = torch.Generator().manual_seed(0)
    return ImageSet(torch.randint(256, (40, 8, 8, 3), dtype=torch.uint8, generator=source), torch.arange(40))


def rows(images):
    return {image.numpy().tobytes() for image in images}


def epoch(data, experiment, rank=0, world_size=1, number=0):
    batches = TrainingBatches(data, experiment, Ranks(rank, world_size, CPU))
    return [batch[:2] for batch in batches.epoch(number)]


# Splits


def test_digits_are_all_there_once(experiment):
    splits = load_splits(experiment({"data.train_samples": None, "data.holdout": 200}).data)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1300, 200, 297]
    together = torch.cat([part.images for part in parts])
    expected = (load_digits().images * 255 / 16).round().astype(np.uint8)
    assert sorted(image.tobytes() for image in together.squeeze(-1).numpy()) == sorted(i.tobytes() for i in expected)


def test_splits_are_disjoint_and_have_the_class_shares_of_the_whole(experiment):
    splits = load_splits(experiment({"data.train_samples": 500, "data.holdout": 300}).data)
    parts = [rows(part.images) for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 500 + 300 + 297
    share = np.bincount(load_digits().target) / 1797
    for part in (splits.train, splits.validation, splits.test):
        assert np.abs(torch.bincount(part.labels).numpy() - share * len(part)).max() < 1.5


def test_splits_are_fixed_by_the_split_seed_and_only_the_test_set_by_nothing(experiment):
    first, same, other = (load_splits(experiment({"data.split_seed": seed}).data) for seed in (0, 0, 1))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part).images, getattr(same, part).images)
    assert rows(first.validation.images) != rows(other.validation.images)
    assert torch.equal(first.test.images, other.test.images)


def test_fewer_training_samples_are_a_part_of_the_pool_and_leave_the_holdout_alone(experiment):
    few = load_splits(experiment({"data.train_samples": 50}).data)
    many = load_splits(experiment({"data.train_samples": None}).data)
    assert len(few.train) == 50
    assert rows(few.train.images) < rows(many.train.images)
    assert torch.equal(few.validation.images, many.validation.images)


@pytest.mark.parametrize("more", [0, 1, 1000])
def test_as_many_training_samples_as_the_pool_has_or_more_are_the_whole_pool(more, experiment):
    labels = torch.arange(200) % 10
    whole, held_out = cut(experiment({"data.train_samples": None, "data.holdout": 40}).data, labels)
    pool, _ = cut(experiment({"data.train_samples": len(whole) + more, "data.holdout": 40}).data, labels)
    assert np.array_equal(pool, whole)
    assert sorted([*pool, *held_out]) == list(range(200))


def test_which_of_the_pool_are_trained_on_is_drawn_by_the_split_seed_too(experiment):
    labels, places = torch.zeros(200, dtype=torch.long), []
    for seed in (0, 1):
        settings = {"data.holdout": 40, "data.split_seed": seed}
        whole, _ = cut(experiment(settings | {"data.train_samples": None}).data, labels)
        few, _ = cut(experiment(settings | {"data.train_samples": 50}).data, labels)
        places.append(np.searchsorted(whole, few).tolist())
    assert places[0] != places[1]


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_digits_are_shown_larger_by_repeating_pixels(size, experiment):
    small = load_splits(experiment().data).test
    large = load_splits(experiment({"data.size": size}).data).test
    assert large.images.shape == (297, size, size, 1)
    assert np.array_equal(large.images, small.images.numpy().repeat(size // 8, 1).repeat(size // 8, 2))


def test_floats_are_channels_first_and_between_zero_and_one(splits):
    floats = splits.test.floats(3, 5)
    assert floats.dtype == torch.float32
    assert torch.equal(floats, splits.test.images[3:5].permute(0, 3, 1, 2) / 255)
    assert (splits.test.floats().min(), splits.test.floats().max()) == (0, 1)


@pytest.mark.parametrize("count", [1, 7, 50, 99])
def test_stratified_gives_each_class_its_share_to_within_one(count):
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rest, chosen = stratified(labels, count, 0)
    assert sorted([*rest, *chosen]) == list(range(100))
    assert [*rest, *chosen] == [*sorted(rest), *sorted(chosen)]
    assert len(chosen) == count
    assert (np.abs(np.bincount(labels[chosen], minlength=3) - np.array([0.5, 0.3, 0.2]) * count) < 1).all()


def test_what_the_shares_leave_goes_to_the_largest_remainder():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)  # shares of 3.5, 2.1 and 1.4
    assert np.bincount(labels[stratified(labels, 7, 0)[1]]).tolist() == [4, 2, 1]


@pytest.mark.parametrize("count", [0, 100])
def test_stratified_refuses_to_leave_a_side_empty(count):
    with pytest.raises(InvalidInput, match="between 1 and 99"):
        stratified(torch.zeros(100, dtype=torch.long), count, 0)


# Batches


def test_an_epoch_meets_every_sample_at_most_once_and_drops_the_last_partial_batch(pictures, experiment):
    batches = epoch(pictures, experiment({"optimizer.batch_size": 12}))
    assert [len(labels) for _, labels in batches] == [12, 12, 12]
    labels = torch.cat([labels for _, labels in batches])
    assert len(set(labels.tolist())) == 36
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images, pictures.floats()[labels])


def test_epochs_and_seeds_have_orders_of_their_own_that_can_be_repeated(pictures, experiment):
    def order(seed, number):
        return [y for _, labels in epoch(pictures, experiment({"seed": seed}), number=number) for y in labels.tolist()]

    assert order(0, 1) == order(0, 1)
    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(40))]
    assert all(one != other for one, other in product(orders, orders) if one is not other)


def test_epochs_and_seeds_have_crops_of_their_own_that_can_be_repeated(pictures, experiment):
    same = pictures.select(np.zeros(12, dtype=int))  # one image over and over: its order in the batch is nothing

    def crops(seed, number):
        ((images, _),) = epoch(same, experiment({"seed": seed, "data.augment": True}), number=number)
        return images

    assert torch.equal(crops(0, 1), crops(0, 1))
    assert not any(torch.equal(crops(0, 0), crops(*other)) for other in ((0, 1), (1, 0)))


@pytest.mark.parametrize("augment", [False, True])
def test_the_ranks_batches_are_together_the_one_batch_of_a_single_rank(augment, pictures, experiment):
    settings = experiment({"optimizer.batch_size": 12, "data.augment": augment})
    whole = epoch(pictures, settings)
    parts = zip(*(epoch(pictures, settings, rank, 3) for rank in range(3)), strict=True)
    for (images, labels), pieces in zip(whole, parts, strict=True):
        assert torch.equal(torch.cat([piece[0] for piece in pieces]), images)
        assert torch.equal(torch.cat([piece[1] for piece in pieces]), labels)


@pytest.mark.parametrize(
    ("padding", "mode", "flip"), [(4, "zero", True), (2, "zero", False), (3, "reflect", False), (0, "reflect", True)]
)
def test_every_sample_is_cropped_and_flipped_by_itself(padding, mode, flip, pictures, experiment):
    augmentation = {"augment": True, "flip": flip, "padding": padding, "padding_mode": mode, "size": 8}
    settings = experiment({"data": augmentation, "optimizer.batch_size": 40})
    ((images, labels),) = epoch(pictures, settings)
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(pictures.images.numpy(), border, mode="constant" if mode == "zero" else "reflect")
    corners, directions = range(2 * padding + 1), (1, -1) if flip else (1,)
    seen = []
    for image, label in zip((images * 255).round().byte().permute(0, 2, 3, 1).numpy(), labels, strict=True):
        views = [
            (top, left, step)
            for top, left, step in product(corners, corners, directions)
            if np.array_equal(padded[label, top : top + 8, left : left + 8][:, ::step], image)
        ]
        assert len(views) == 1
        seen += views
    tops, lefts, steps = map(set, zip(*seen, strict=True))
    assert len(set(seen)) > 0.4 * min(40, len(corners) ** 2 * len(directions))
    assert (min(tops), max(tops), min(lefts), max(lefts), steps) == (0, 2 * padding, 0, 2 * padding, set(directions))


def test_a_batch_that_ranks_can_not_share_evenly_is_refused(pictures, experiment):
    with pytest.raises(InvalidInput, match="can't be divided among 3 ranks"):
        TrainingBatches(pictures, experiment({"optimizer.batch_size": 10}), Ranks(0, 3, CPU))


def test_a_batch_larger_than_the_data_is_all_of_the_data(pictures, experiment):
    assert [len(labels) for _, labels in epoch(pictures, experiment({"optimizer.batch_size": 64}))] == [40]


def test_shares_of_the_ranks_follow_one_another_and_cover_all(experiment):
    for count, world_size in product((0, 1, 5, 12), (1, 2, 5)):
        shares = [Ranks(rank, world_size, CPU).share(count) for rank in range(world_size)]
        assert [row for share in shares for row in range(count)[share]] == list(range(count))
        assert all(left.stop == right.start for left, right in pairwise(shares))
        sizes = [share.stop - share.start for share in shares]
        assert max(sizes) - min(sizes) <= 1
