"""What is kept of each image, against plain loops, and how the attacks of the lens move energies on a real net."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from trainers.catalog.attacks import STAGES
from trainers.evaluation.ranges import evaluate_range, fixed_subset
from trainers.evaluation.result import Protocol
from trainers.lens.measure import measure_range
from trainers.lens.points import Points, point_delta_energies, points, standing

PROTOCOL = Protocol("digits 8x8", "test", 40, "0.1", "clean", 0, 40, 20, "weights")
CHEAP = ("pgd20", "pgd20-t", "kl20", "cw", "apgd-ce", "apgd-dlr")


@pytest.fixture(scope="module")
def seen(natural_net, splits):
    """`seen(stage, epsilon)`: the net's points on 40 test digits."""
    images, kept = fixed_subset(splits.test, 40), {}

    def measured(stage, epsilon="0.1"):
        if (stage, epsilon) not in kept:
            protocol = replace(PROTOCOL, attack=stage, epsilon=epsilon)
            kept[stage, epsilon] = measure_range(natural_net, images, protocol, 0, 40)
        return kept[stage, epsilon]

    return measured


def mean_deltas(seen, stage, epsilon="0.1"):
    marginal, joint = point_delta_energies(seen("clean"), seen(stage, epsilon))
    return marginal.mean(), joint.mean()


def loss(seen):
    """The cross-entropy of each image: its joint energy less its marginal one."""
    return seen.joint_energy - seen.energy


def equal(left, right):
    return all(np.array_equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(Points))


def test_points_are_those_of_a_plain_loop():
    logits = 5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    found = points(logits, labels)
    for row, (values, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        total = sum(map(math.exp, values))
        p = [math.exp(value) / total for value in values]
        rival = max(share for k, share in enumerate(p) if k != label)
        assert found.energy[row] == pytest.approx(-math.log(total), rel=1e-5)
        assert found.joint_energy[row] == pytest.approx(-values[label], rel=1e-5)
        assert loss(found)[row] == pytest.approx(-math.log(p[label]), rel=1e-4, abs=1e-6)
        assert found.entropy[row] == pytest.approx(-sum(share * math.log(share) for share in p), rel=1e-4)
        assert found.true_probability[row] == pytest.approx(p[label], rel=1e-5)
        assert found.margin[row] == pytest.approx(p[label] - rival, rel=1e-5, abs=1e-7)
        assert found.correct[row] == (values.index(max(values)) == label)
    assert found.step_energy.shape == (6, 0)


def test_a_certain_answer_has_no_entropy_and_an_answer_that_is_not_finite_is_wrong():
    certain = points(torch.tensor([[1000.0, 0.0], [math.nan, 0.0]]), torch.tensor([0, 0]))
    assert (certain.entropy[0], certain.margin[0]) == (0, 1)
    assert certain.correct.tolist() == [True, False]
    assert points(torch.tensor([[0.0, -math.inf]]), torch.tensor([0])).entropy == 0


def test_deltas_are_natural_minus_adversarial():
    natural, adversarial = (points(torch.tensor([[high, 0.0]]), torch.tensor([0])) for high in (5.0, 2.0))
    marginal, joint = point_delta_energies(natural, adversarial)
    assert marginal == pytest.approx(math.log(math.exp(2) + 1) - math.log(math.exp(5) + 1), rel=1e-6)
    assert joint == -3


def test_points_are_read_back_and_joined_as_they_were(seen, tmp_path):
    whole = seen("pgd20")
    whole.save(tmp_path / "a" / "points.npz")
    assert equal(Points.load(tmp_path / "a" / "points.npz"), whole)
    halves = [
        Points(**{field.name: getattr(whole, field.name)[part] for field in fields(Points)})
        for part in (slice(0, 25), slice(25, 40))
    ]
    assert equal(Points.joined(halves), whole)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["points.npz"]


def test_the_natural_points_are_the_nets_own_answers(seen, natural_net, splits):
    images = fixed_subset(splits.test, 40)
    with torch.no_grad():
        logits = natural_net(images.floats())
    assert np.allclose(seen("clean").energy, -logits.logsumexp(1), atol=1e-5)
    assert np.array_equal(seen("clean").correct, logits.argmax(1) == images.labels)
    middle = measure_range(copy.deepcopy(natural_net).train(), images, PROTOCOL, 10, 30)
    assert np.array_equal(middle.labels, images.labels[10:30])
    assert np.allclose(middle.joint_energy, seen("clean").joint_energy[10:30], atol=1e-5)


def test_another_seed_of_the_protocol_finds_other_points(natural_net, splits):
    images = fixed_subset(splits.test, 4)
    for stage in ("pgd20", "apgd-ce"):
        ends = [
            measure_range(natural_net, images, replace(PROTOCOL, attack=stage, seed=seed), 0, 4).energy
            for seed in (0, 1)
        ]
        assert not np.array_equal(*ends)


def test_the_trace_begins_near_the_image_and_ends_at_the_adversarial_point(seen):
    traced = seen("pgd20")
    assert traced.step_energy.shape == traced.step_joint_energy.shape == (40, 21)
    assert np.array_equal(traced.step_energy[:, -1], traced.energy)
    assert np.array_equal(traced.step_joint_energy[:, -1], traced.joint_energy)
    losses = (traced.step_joint_energy - traced.step_energy).mean(axis=0)
    assert losses[0] < losses[5] < losses[20]
    assert abs(traced.step_joint_energy[:, 0] - seen("clean").joint_energy).max() < 5
    assert seen("cw").step_energy.shape == (40, 0)


def test_the_lens_finds_what_the_evaluation_finds(seen, natural_net, splits):
    images = fixed_subset(splits.test, 40)
    flags = evaluate_range(natural_net, images, replace(PROTOCOL, attack="cw", epsilon="0.06"), 0, 40).standing
    assert flags["clean"] == tuple(seen("clean").correct)
    stands = standing(seen("clean"), seen("cw", "0.06"))
    # The evaluation leaves wrong answers out, which shifts the noise of the images after them.
    assert abs(int(stands.sum()) - sum(flags["cw"])) <= 2


@pytest.mark.parametrize("stage", CHEAP)
def test_every_gradient_attack_moves_every_image_and_raises_its_joint_energy_on_average(stage, seen):
    assert seen(stage).moved.all()
    assert mean_deltas(seen, stage)[1] < 0
    assert standing(seen("clean"), seen(stage)).sum() < seen("clean").correct.sum()


def test_an_attack_on_the_cross_entropy_lowers_energy_more_than_a_targeted_one(seen):
    for epsilon in ("0.1", "0.3"):
        assert mean_deltas(seen, "pgd20", epsilon)[0] > mean_deltas(seen, "pgd20-t", epsilon)[0]


def test_an_attack_that_does_not_see_the_label_is_not_stronger(seen):
    accuracy = {stage: standing(seen("clean"), seen(stage, "0.06")).mean() for stage in ("kl20", "pgd20")}
    assert accuracy["kl20"] >= accuracy["pgd20"]


def test_the_change_of_energy_rises_with_epsilon(seen):
    changes = [mean_deltas(seen, "pgd20", epsilon)[0] for epsilon in ("0.1", "0.5", "1")]
    assert changes == sorted(changes)
    assert changes[0] < 0 < changes[-1]


def test_apgd_gives_the_point_of_highest_loss_also_where_it_finds_nothing(seen):
    weak = seen("apgd-ce", "0.005")
    assert standing(seen("clean"), weak).any()
    assert weak.moved.all()
    assert (loss(weak) >= loss(seen("clean")) - 1e-5).all()
    assert loss(weak).mean() > loss(seen("clean")).mean()


def test_a_stage_of_autoattack_leaves_images_that_it_does_not_take(natural_net, splits):
    protocol = replace(PROTOCOL, attack="apgd-t", epsilon="0.03")
    images = fixed_subset(splits.test, 8)
    found = measure_range(natural_net, images, protocol, 0, 8)
    natural = measure_range(natural_net, images, replace(protocol, attack="clean"), 0, 8)
    assert not found.moved.all()
    assert np.array_equal(found.energy[~found.moved], natural.energy[~found.moved])
    assert not found.correct[found.moved].any()


def test_measuring_leaves_the_net_and_the_random_state_alone(natural_net, splits):
    images = fixed_subset(splits.test, 5)
    before = {name: value.clone() for name, value in natural_net.state_dict().items()}
    state = torch.get_rng_state()
    for stage in ("pgd20", "apgd-dlr"):
        first = measure_range(natural_net, images, replace(PROTOCOL, attack=stage), 0, 5)
        assert equal(first, measure_range(natural_net, images, replace(PROTOCOL, attack=stage), 0, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in natural_net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in natural_net.parameters())
    assert not natural_net._forward_hooks


@pytest.mark.parametrize("stage", STAGES)
def test_every_attack_of_the_evaluation_can_be_looked_through(stage, natural_net, splits):
    images = fixed_subset(splits.test, 3)
    natural = measure_range(natural_net, images, PROTOCOL, 0, 3)
    found = measure_range(natural_net, images, replace(PROTOCOL, attack=stage, epsilon="0.5"), 0, 3)
    taken = natural.correct & ~found.correct
    assert taken.any()
    assert found.moved[taken].all()
    assert (found.joint_energy[taken] > natural.joint_energy[taken]).any()
    assert all(np.isfinite(getattr(found, field.name)).all() for field in fields(Points))
