"""Evaluation stage by stage and shard by shard gives what the attacks give when they are run as a whole."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn
from torch.nn import functional as F
from trainers.evaluation.result import Evaluation, Flags, Protocol

from trainers.attacks.pgd import pgd
from trainers.catalog.attacks import ATTACK_NAMES, AUTOATTACK, stages
from trainers.evaluation.ranges import evaluate_range, fixed_subset
from trainers.problems import InvalidInput
from trainers.randomness import Noise, generator

PROTOCOL = Protocol("digits", "test", 9, "0.07", "autoattack", seed=3, shard=9, batch_size=5, checkpoint="best")
PGD = replace(PROTOCOL, epsilon="0.05", attack="pgd20", samples=14, batch_size=5)


@pytest.fixture(scope="module")
def perceptron(digits):
    """A net of two layers, since AutoAttack asks a model some ten thousand times."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(digits[0]), digits[1]).backward()
        optimizer.step()
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def images(splits):
    return fixed_subset(splits.test, 14)


@pytest.fixture(scope="module")
def flags(perceptron, images):
    """What AutoAttack leaves standing, by our own run."""
    return evaluate_range(perceptron, images, PROTOCOL, 0, 9)


def test_flags_are_those_of_the_package_run_as_a_whole(flags, perceptron, images):
    runner = AutoAttack(perceptron, eps=0.07, norm="Linf", version="standard", device="cpu", seed=PROTOCOL.seed)
    pixels, labels = images.floats(0, 9), images.labels[:9]
    with torch.random.fork_rng():
        adversarial, _ = runner.run_standard_evaluation(pixels, labels, batch_size=PROTOCOL.batch_size)
    standing = (perceptron(adversarial).argmax(1) == labels).tolist()
    assert list(flags.standing) == ["clean", *AUTOATTACK]
    assert list(flags.standing[AUTOATTACK[-1]]) == standing
    assert 0 < sum(standing) < sum(flags.standing["clean"])


def test_every_stage_draws_the_random_numbers_of_the_package_at_this_seed(perceptron, images, monkeypatch):
    crafted = []

    class Recording(AutoAttack):
        def run_standard_evaluation(self, *arguments, **options):
            crafted.append(super().run_standard_evaluation(*arguments, **options)[0])
            return crafted[-1], None

    monkeypatch.setattr("pyautoattack.AutoAttack", Recording)
    evaluate_range(perceptron, images, replace(PROTOCOL, epsilon="0.5"), 0, 9)
    for seed in (PROTOCOL.seed, PROTOCOL.seed + 1):
        runner = AutoAttack(perceptron, eps=0.5, norm="Linf", version="standard", device="cpu", seed=seed)
        runner.attacks_to_run = ["apgd-ce"]
        correct = perceptron(images.floats(0, 9)).argmax(1) == images.labels[:9]
        pixels, labels = images.floats(0, 9)[correct], images.labels[:9][correct]
        with torch.random.fork_rng():
            whole, _ = runner.run_standard_evaluation(pixels, labels, batch_size=PROTOCOL.batch_size)
        assert torch.equal(crafted[0], whole) == (seed == PROTOCOL.seed)


def test_who_has_fallen_does_not_stand_up_again(flags):
    for before, after in pairwise(flags.standing.values()):
        assert all(was or not stands for was, stands in zip(before, after, strict=True))


def test_pgd20_is_ours_on_the_images_that_are_classified_correctly(natural_net, images):
    pixels, labels = images.floats(), images.labels
    found = evaluate_range(natural_net, images, replace(PGD, batch_size=14), 0, 14).standing
    correct = natural_net(pixels).argmax(1) == labels
    assert list(found["clean"]) == correct.tolist()
    noise = Noise(generator("cpu", PGD.seed, "pgd20", 0))
    attacked = pgd(
        natural_net, pixels[correct], labels[correct],
        epsilon=0.05, step_size=0.0125, steps=20, batch_norm="eval", noise=noise,
    )  # fmt: skip
    expected = correct.clone()
    expected[correct] = natural_net(attacked.images).argmax(1) == labels[correct]
    assert list(found["pgd20"]) == expected.tolist()
    assert 0 < sum(found["pgd20"]) < sum(found["clean"])


def test_an_attack_without_room_changes_nothing(natural_net, images):
    found = evaluate_range(natural_net, images, replace(PGD, epsilon="1e-9"), 0, 14).standing
    assert found["pgd20"] == found["clean"]


def test_clean_alone_attacks_nothing(natural_net, images):
    assert list(evaluate_range(natural_net, images, replace(PGD, attack="clean"), 0, 14).standing) == ["clean"]


@pytest.mark.parametrize("protocol", [PGD, replace(PROTOCOL, epsilon="1.0")], ids=["pgd20", "autoattack at epsilon 1"])
def test_evaluation_leaves_random_states_and_gradients_alone(protocol, natural_net, images):
    model = copy.deepcopy(natural_net).train()
    model.network[0].weight.requires_grad_(False)
    required = [parameter.requires_grad for parameter in model.parameters()]
    weights = copy.deepcopy(model.state_dict())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    evaluate_range(model, images, protocol, 0, 4)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_when_nobody_stands_the_remaining_stages_are_all_false(natural_net, images):
    standing = evaluate_range(natural_net, images, replace(PROTOCOL, epsilon="1.0"), 0, 4).standing
    assert not any(any(values) for stage, values in standing.items() if stage != "clean")
    assert list(standing) == ["clean", *AUTOATTACK]


def test_stages_are_announced_in_order(natural_net, images):
    announced = []
    evaluate_range(natural_net, images, PGD, 0, 4, announced.append)
    assert announced == ["pgd20"]


# Shards


def test_shards_merge_to_the_whole_in_any_grouping(natural_net, images):
    parts = [evaluate_range(natural_net, images, PGD, *shard) for shard in ((0, 5), (5, 10), (10, 14))]
    merged = parts[0].merged(parts[1]).merged(parts[2])
    assert merged == parts[0].merged(parts[1].merged(parts[2]))
    assert (merged.start, merged.stop) == (0, 14)
    assert merged.standing["clean"] == evaluate_range(natural_net, images, PGD, 0, 14).standing["clean"]
    assert merged.standing["pgd20"] == sum((part.standing["pgd20"] for part in parts), ())


def test_a_shard_does_not_depend_on_what_was_evaluated_before(natural_net, images):
    alone = evaluate_range(natural_net, images, PGD, 5, 10)
    evaluate_range(natural_net, images, PGD, 0, 5)
    assert evaluate_range(natural_net, images, PGD, 5, 10) == alone


@pytest.mark.parametrize("other", [Flags(3, 4, {"clean": (True,)}), Flags(2, 3, {"clean": (True,), "pgd20": (True,)})])
def test_ranges_that_do_not_follow_one_another_are_not_merged(other):
    with pytest.raises(ValueError, match="neighbouring ranges"):
        Flags(0, 2, {"clean": (True, False)}).merged(other)


# Results


def test_accuracies_are_shares_and_the_last_is_the_worst_case(flags):
    evaluation = Evaluation(PROTOCOL, "abc", 7, flags)
    assert evaluation.accuracies["clean"] == np.mean(flags.standing["clean"])
    assert evaluation.robust_accuracy == min(evaluation.accuracies.values()) == np.mean(flags.standing["square"])


def test_an_evaluation_comes_back_from_its_file(flags, tmp_path):
    evaluation = Evaluation(PROTOCOL, "abc", 7, flags)
    file = tmp_path / "evaluations" / "autoattack.json"
    evaluation.save(file)
    assert Evaluation.load(file) == evaluation
    assert [path.name for path in file.parent.iterdir()] == ["autoattack.json"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", "cifar10"),
        ("split", "validation"),
        ("samples", 15),
        ("epsilon", "0.06"),
        ("attack", "pgd20"),
        ("seed", 4),
        ("shard", 7),
        ("batch_size", 7),
        ("checkpoint", "last"),
        ("precision", "bfloat16"),
    ],
)
def test_numbers_under_different_protocols_have_different_keys(field, value):
    assert replace(PROTOCOL, **{field: value}).key != PROTOCOL.key


def test_an_attack_that_does_not_exist_is_named():
    with pytest.raises(InvalidInput, match=r"attack: unknown attack 'autoatack'.*Did you mean autoattack"):
        stages("autoatack")
    assert all(isinstance(stages(name), tuple) for name in ATTACK_NAMES)


def test_the_subset_is_fixed_and_mixes_the_classes(splits):
    few, again, all_of_it = (fixed_subset(splits.test, samples) for samples in (20, 20, 9999))
    assert torch.equal(few.images, again.images)
    assert len(all_of_it) == len(splits.test)
    assert len(set(few.labels.tolist())) > 5
