"""Evaluation stage by stage and shard by shard gives what the attacks give when they are run as a whole."""

from __future__ import annotations

import copy
import logging
import re
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn
from torch.nn import functional as F

from trainers.attacks.pgd import pgd
from trainers.catalog.attacks import AUTOATTACK, stages
from trainers.config import parse
from trainers.data.images import ImageSet
from trainers.evaluation.autoattack import autoattack_stage
from trainers.evaluation.ranges import evaluate_range, fixed_subset
from trainers.evaluation.result import FAST, EvaluationResult, Flags, ForeignModel, Protocol, differences
from trainers.models.build import build_model
from trainers.randomness import Noise, generator

PROTOCOL = Protocol("digits", "test", 24, "0.11", "autoattack", seed=3, shard=24, batch_size=9, checkpoint="best")
PGD = replace(PROTOCOL, epsilon="0.05", attack="pgd20", samples=14, batch_size=5)


class Shattered(nn.Module):
    """A perceptron behind steps and waves, whose gradients mislead: every stage of AutoAttack has something left."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, images):
        steps = torch.round(6 * images) / 6
        return self.layers(0.2 * images + 0.8 * steps + 0.06 * torch.sin(80 * images))


@pytest.fixture(scope="module")
def shattered(digits):
    """`shattered(seed)`: trained on the digits, without gradients of its own."""

    def trained(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Shattered()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(digits[0]), digits[1]).backward()
            optimizer.step()
        return model.requires_grad_(False)

    return trained


@pytest.fixture(scope="module")
def images(splits):
    return fixed_subset(splits.test, 24)


@pytest.fixture(scope="module")
def flags(shattered, images):
    """What AutoAttack leaves standing, by our own run."""
    return evaluate_range(shattered(0), images, PROTOCOL, 0, 24)


def package(model, pixels, labels, protocol):
    """x* by one run of the package over all stages, as its users run it."""
    runner = AutoAttack(
        model, eps=float(protocol.epsilon), norm="Linf", version="standard", device="cpu", seed=protocol.seed
    )
    runner.attacks_to_run = list(stages(protocol.attack))
    with torch.random.fork_rng():
        return runner.run_standard_evaluation(pixels, labels, batch_size=protocol.batch_size)[0]


def check_against_package(flags, model, images, protocol, caplog):
    """Flags of every image at the end, and the number that stands after each stage."""
    with caplog.at_level(logging.DEBUG, logger="auto-attack"):
        adversarial = package(model, images.floats(), images.labels, protocol)
    assert list(flags.standing) == ["clean", *stages(protocol.attack)]
    assert list(flags.standing[stages(protocol.attack)[-1]]) == (model(adversarial).argmax(1) == images.labels).tolist()
    reported = re.findall(r"(?:initial|after \S+:?) ?(?:accuracy)?:? ([\d.]+)%", caplog.text)
    assert reported == [f"{100 * np.mean(standing):.2f}" for standing in flags.standing.values()]
    counts = [sum(standing) for standing in flags.standing.values()]
    assert sum(before > after for before, after in pairwise(counts)) >= len(counts) - 2
    assert counts[-1] > 0


def test_autoattack_by_stages_is_the_package_run_as_a_whole(flags, shattered, images, caplog):
    check_against_package(flags, shattered(0), images, PROTOCOL, caplog)


def test_so_it_is_when_every_stage_takes_several_batches(shattered, images, caplog):
    protocol = replace(PROTOCOL, attack="apgd-dlr,apgd-ce,apgd-t", batch_size=4)
    model = shattered(3)
    found = evaluate_range(model, images, protocol, 0, 24)
    check_against_package(found, model, images, protocol, caplog)
    assert sum(found.standing["apgd-ce"]) > protocol.batch_size


def test_so_it_is_for_images_of_several_channels(caplog):
    """Where channels come last in memory, as networks are searched, the package can't flatten what it gets."""
    model = build_model(parse({"data": "cifar10", "method": "sat", "model": {"name": "small", "width": 4}})).eval()
    model.requires_grad_(False)
    pictures = torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pictures, model(ImageSet(pictures, torch.zeros(8)).floats()).argmax(1))
    protocol = replace(PROTOCOL, epsilon="0.02", batch_size=8)
    found = evaluate_range(model, images, protocol, 0, 8)
    with caplog.at_level(logging.DEBUG, logger="auto-attack"):
        plain = images.floats().contiguous()
        assert not images.floats().is_contiguous()
        adversarial = package(model, plain, images.labels, protocol)
    assert list(found.standing["square"]) == (model(adversarial).argmax(1) == images.labels).tolist()
    assert 0 < sum(found.standing["square"]) < 8
    fast = evaluate_range(model, images, replace(protocol, precision=FAST, attack="apgd-ce"), 0, 8)
    assert sum(fast.standing["apgd-ce"]) >= sum(found.standing["square"])


def test_every_stage_draws_the_random_numbers_of_the_package_at_this_seed(shattered, images, monkeypatch):
    crafted = []

    class Recording(AutoAttack):
        def run_standard_evaluation(self, *arguments, **options):
            crafted.append(super().run_standard_evaluation(*arguments, **options)[0])
            return crafted[-1], None

    monkeypatch.setattr("pyautoattack.AutoAttack", Recording)
    model, protocol = shattered(0), replace(PROTOCOL, attack="apgd-ce")
    evaluate_range(model, images, protocol, 0, 24)
    correct = model(images.floats()).argmax(1) == images.labels
    pixels, labels = images.floats()[correct], images.labels[correct]
    assert torch.equal(crafted[0], package(model, pixels, labels, protocol))
    assert not torch.equal(crafted[0], package(model, pixels, labels, replace(protocol, seed=4)))


def test_attacks_whose_flags_were_kept_are_not_run_again(flags, shattered, images, monkeypatch):
    kept, announced = [], []
    model = shattered(0)
    monkeypatch.setattr("trainers.evaluation.ranges.autoattack_stage", lambda model, pixels, *_, **__: pixels)
    untouched = evaluate_range(model, images, PROTOCOL, 0, 24, keep=kept.append)
    assert [list(known.standing) for known in kept] == [["clean", *AUTOATTACK[: n + 1]] for n in range(len(AUTOATTACK))]
    assert kept[-1] == untouched
    monkeypatch.undo()
    begun = Flags(0, 24, {stage: flags.standing[stage] for stage in ("clean", *AUTOATTACK[:3])})
    assert evaluate_range(model, images, PROTOCOL, 0, 24, announced.append, known=begun) == flags
    assert announced == [AUTOATTACK[3]]


def test_who_has_fallen_does_not_stand_up_again(flags):
    for before, after in pairwise(flags.standing.values()):
        assert all(was or not stands for was, stands in zip(before, after, strict=True))


def test_pgd20_is_ours_on_the_images_that_are_classified_correctly(natural_net, images):
    pixels, labels = images.floats(), images.labels
    found = evaluate_range(natural_net, images, replace(PGD, batch_size=24), 0, 24).standing
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


@pytest.fixture
def traced():
    """Something traces, as coverage and debuggers do."""
    before = sys.gettrace()
    sys.settrace(before or (lambda frame, event, argument: None))
    yield
    sys.settrace(before)


@pytest.mark.parametrize("protocol", [PGD, replace(PROTOCOL, epsilon="1.0")], ids=["pgd20", "autoattack at epsilon 1"])
def test_evaluation_leaves_random_states_gradients_and_tracing_alone(protocol, natural_net, images, traced):
    model = copy.deepcopy(natural_net).train()
    model.network[0].weight.requires_grad_(False)
    required = [parameter.requires_grad for parameter in model.parameters()]
    weights = copy.deepcopy(model.state_dict())
    torch_state, numpy_state, tracer = torch.get_rng_state(), np.random.get_state()[1].copy(), sys.gettrace()
    evaluate_range(model, images, protocol, 0, 4)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert sys.gettrace() is tracer
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


# Searched in bfloat16


class Wrong(nn.Module):
    """Of no use for a search: it takes every image for one of another class than `model` does."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return -self.model(images)


def test_what_only_the_fast_copy_takes_for_adversarial_is_attacked_again(flags, shattered, images, monkeypatch):
    copies = []
    monkeypatch.setattr(
        "trainers.evaluation.ranges.for_fast_search", lambda model: copies.append(Wrong(model)) or copies[-1]
    )
    assert evaluate_range(shattered(0), images, replace(PROTOCOL, precision=FAST), 0, 24) == flags
    assert copies


@pytest.mark.parametrize("attack", ["pgd20", "apgd-ce"])
def test_a_fast_evaluation_is_about_the_exact_one_and_the_same_each_time(attack, natural_net, images):
    protocol = replace(PGD, attack=attack, samples=24, epsilon="0.03")
    exact = evaluate_range(natural_net, images, protocol, 0, 24)
    fast = evaluate_range(natural_net, images, replace(protocol, precision=FAST), 0, 24)
    assert fast == evaluate_range(natural_net, images, replace(protocol, precision=FAST), 0, 24)
    assert fast.standing["clean"] == exact.standing["clean"]
    counts = [sum(found.standing[stages(attack)[-1]]) for found in (exact, fast)]
    assert 2 < counts[0] < sum(exact.standing["clean"])
    assert abs(counts[0] - counts[1]) <= 2


def test_numbers_of_fast_searches_have_a_protocol_of_their_own():
    fast = replace(PROTOCOL, precision=FAST)
    assert fast.is_fast
    assert not PROTOCOL.is_fast
    assert "bfloat16-search" in fast.key
    assert fast.digest != PROTOCOL.digest


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
    evaluation = EvaluationResult(PROTOCOL, "abc", 7, flags)
    assert evaluation.accuracies["clean"] == np.mean(flags.standing["clean"])
    assert evaluation.robust_accuracy == min(evaluation.accuracies.values()) == np.mean(flags.standing["square"])


@pytest.mark.parametrize("foreign", [None, ForeignModel("preact_resnet18 width=64", "ab" * 32)])
def test_an_evaluation_comes_back_from_its_file(foreign, flags, tmp_path):
    ours = foreign is None
    evaluation = EvaluationResult(PROTOCOL, "abc" if ours else None, 7 if ours else None, flags, foreign, ("doubtful",))
    file = tmp_path / "evaluations" / "autoattack.json"
    evaluation.save(file)
    assert EvaluationResult.load(file) == evaluation
    assert [path.name for path in file.parent.iterdir()] == ["autoattack.json"]


def evaluation(**standing):
    """`evaluation(clean="110", pgd20="100")`"""
    rows = {stage: tuple(letter == "1" for letter in letters) for stage, letters in standing.items()}
    return EvaluationResult(PROTOCOL, "abc", 7, Flags(0, len(rows["clean"]), rows))


def test_standard_errors_are_binomial():
    found = evaluation(clean="1111", pgd20="1000").standard_errors
    assert found == {"clean": 0, "pgd20": pytest.approx((0.25 * 0.75 / 4) ** 0.5)}


def test_differences_are_those_of_the_same_images():
    best, last = evaluation(clean="1110", pgd20="1100"), evaluation(clean="1101", pgd20="1000")
    pairs = np.array([0, 0, 1, -1])
    found = differences(best, last)
    assert found["clean"] == (0, pytest.approx(pairs.std() / 2))
    assert found["pgd20"] == (0.25, pytest.approx(np.array([0, 1, 0, 0]).std() / 2))
    with pytest.raises(ValueError, match="different protocols"):
        differences(best, replace(last, protocol=replace(PROTOCOL, seed=4)))


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


def test_the_subset_is_fixed_and_mixes_the_classes(splits):
    few, again, all_of_it = (fixed_subset(splits.test, samples) for samples in (20, 20, 9999))
    assert torch.equal(few.images, again.images)
    assert len(all_of_it) == len(splits.test)
    assert len(set(few.labels.tolist())) > 5


def test_the_package_does_not_remark_on_single_points_for_every_target_and_else_is_heard(caplog):
    class Sure(torch.nn.Module):
        """Always says 0 and has no slope anywhere."""

        def forward(self, images):
            return images.flatten(1)[:, :5] * 0 + torch.arange(5, 0, -1.0)

    logger = logging.getLogger("auto-attack")

    class Warned(Sure):
        def forward(self, images):
            logger.warning("something else")
            return super().forward(images)

    images, labels = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    autoattack_stage(Warned(), images, labels, "apgd-t", epsilon=0.1, seed=0, batch_size=3)
    said = {record.getMessage() for record in caplog.records}
    assert "something else" in said
    assert not [text for text in said if "zero gradient" in text]
    assert not logger.filters
