"""Tables and correlations against plain loops and hand-made lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainers.lens.points import points, standing
from trainers.lens.statistics import (
    CLASS_COLUMNS,
    class_correlations,
    class_rows,
    pearson,
    smoothness,
    spearman,
)
from trainers.lens.subsets import choose_subsets


@pytest.fixture(scope="module")
def made():
    """(natural, [two attacks]) of 80 images of four classes, the last of which no image has."""
    source = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (80,), generator=source)
    logits = torch.randn(3, 80, 4, generator=source)
    logits[0, torch.arange(80), labels] += 2 + labels
    return points(logits[0], labels), [points(other, labels) for other in logits[1:]]


def test_class_rows_are_those_of_a_plain_loop(made):
    natural, attacked = made
    rows = class_rows(natural, attacked)
    assert [row.label for row in rows] == [0, 1, 2]
    for row in rows:
        images = [i for i in range(80) if natural.labels[i] == row.label]
        robust = [natural.correct[i] and all(one.correct[i] for one in attacked) for i in images]
        assert row.count == len(images)
        assert row.energy == pytest.approx(sum(float(natural.energy[i]) for i in images) / len(images))
        assert row.joint_energy == pytest.approx(sum(float(natural.joint_energy[i]) for i in images) / len(images))
        assert row.entropy == pytest.approx(sum(float(natural.entropy[i]) for i in images) / len(images))
        assert row.probabilistic_error == pytest.approx(
            sum(1 - float(natural.true_probability[i]) for i in images) / len(images)
        )
        assert row.error == pytest.approx(sum(not natural.correct[i] for i in images) / len(images))
        assert row.robust_error == pytest.approx(1 - sum(robust) / len(images))
        assert row.error < row.robust_error < 1
    assert standing(natural, attacked[0]).sum() < natural.correct.sum()


def test_class_correlations_are_those_of_ranks(made):
    rows = class_rows(*made)
    found = class_correlations(rows)
    assert len(found) == len(CLASS_COLUMNS) * (len(CLASS_COLUMNS) - 1) // 2
    for (left, right), value in found.items():
        ranks = [np.argsort(np.argsort([getattr(row, name) for row in rows])) for name in (left, right)]
        assert value == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_correlations_of_curves_and_of_constants():
    x = np.linspace(1, 3, 20)
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    assert pearson(x, np.exp(x)) == pytest.approx(np.corrcoef(x, np.exp(x))[0, 1])
    assert all(math.isnan(of(x, np.ones(20))) for of in (pearson, spearman))
    assert math.isnan(spearman([1.0], [2.0]))
    assert math.isnan(pearson([], []))
    assert spearman([1.0, 2.0], [4.0, 3.0]) == pytest.approx(-1)


def test_smoothness_counts_small_changes_by_their_size():
    values = np.array([-2.0, -0.09, 0.0, 0.09, 0.1, -0.5])
    found = smoothness(values)
    assert found.mean == pytest.approx(-2.4 / 6)
    assert found.absolute_mean == pytest.approx(2.4 / 6)
    assert found.std == pytest.approx(np.std(values))
    assert found.small_share == 0.5


def test_subsets_of_a_hand_made_list():
    energy = np.array([-9.0, -1.0, -5.0, -2.0, -8.0, -3.0, -7.0, -4.0])
    correct = np.array([True, False, True, True, True, False, True, True])
    chosen = choose_subsets(energy, correct, seed=0)
    assert list(chosen) == ["misclassified", "high_energy", "low_energy", "random"]
    assert chosen["misclassified"].tolist() == [1, 5]
    assert chosen["high_energy"].tolist() == [3, 7]
    assert chosen["low_energy"].tolist() == [0, 4]
    assert len(set(chosen["random"])) == 2
    assert correct[chosen["random"]].all()


def test_the_random_subset_is_fixed_by_its_seed():
    energy, correct = np.random.default_rng(0).normal(size=100), np.arange(100) >= 20
    first, same, other = (choose_subsets(energy, correct, seed=seed)["random"] for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert len(first) == 20


def test_all_subsets_are_cut_to_the_number_of_correct_images():
    correct = np.arange(10) < 3
    chosen = choose_subsets(np.arange(10.0), correct, seed=0)
    assert {len(rows) for rows in chosen.values()} == {3}
    assert not correct[chosen["misclassified"]].any()
    for name in ("high_energy", "low_energy", "random"):
        assert chosen[name].tolist() == [0, 1, 2]


@pytest.mark.parametrize("right", [True, False])
def test_a_net_without_mistakes_or_without_answers_has_no_subsets(right):
    with pytest.raises(ValueError, match="tells no subsets apart"):
        choose_subsets(np.zeros(4), np.full(4, right), seed=0)
