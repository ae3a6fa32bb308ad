"""The attacks of an evaluation by name, and ours against closed forms and independent computations."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainers.attacks.linf import uniform_start
from trainers.catalog.attacks import (
    AUTOATTACK,
    STAGES,
    attack_label,
    canonical,
    evaluation_passes,
    needs_gradients,
    stages,
)
from trainers.evaluation.classifier import check_classifier
from trainers.evaluation.gradient import GRADIENT_ATTACKS, margin_t, pgd_restarts
from trainers.evaluation.ranges import evaluate_range, fixed_subset
from trainers.evaluation.result import FAST, EvaluationResult, Flags, Protocol, subset_indices
from trainers.problems import InvalidInput
from trainers.randomness import Noise, generator

PROTOCOL = Protocol("digits", "test", 40, "0.05", "pgd20", seed=0, shard=40, batch_size=20, checkpoint="best")


def noise(seed=0):
    return Noise(generator("cpu", seed, "test"))


# Names


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ("clean", ()),
        ("pgd20", ("pgd20",)),
        ("autoattack", AUTOATTACK),
        ("pgd20, cw,square", ("pgd20", "cw", "square")),
        ("pgd20,autoattack", ("pgd20", *AUTOATTACK)),
        ("worst", ("pgd20", "pgd50-10", "cw", *AUTOATTACK)),
    ],
)
def test_a_name_or_a_list_stands_for_stages_in_order(attack, expected):
    assert stages(attack) == expected


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("autoatack", r"attack: unknown attack 'autoatack'.*Did you mean autoattack"),
        ("pgd20,,cw", "unknown attack ''"),
        ("clean,pgd20", "leave clean out"),
        ("autoattack,square", "square would run twice"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(attack, message):
    with pytest.raises(InvalidInput, match=message):
        stages(attack)


@pytest.mark.parametrize(
    ("attack", "spelling", "label"),
    [
        ("clean", "clean", "no attack"),
        ("apgd-ce, apgd-t, fab-t, square", "autoattack", "AutoAttack"),
        ("worst", "pgd20,pgd50-10,cw,autoattack", "PGD-20 + PGD-50-10 + CW∞ + AutoAttack"),
        ("cw,apgd-ce", "cw,apgd-ce", "CW∞ + APGD-CE"),
    ],
)
def test_the_same_stages_have_one_spelling(attack, spelling, label):
    assert canonical(attack) == canonical(spelling) == spelling
    assert attack_label(attack) == label
    keys = {replace(PROTOCOL, attack=canonical(name)).key for name in (attack, spelling, "pgd20", "pgd20,cw")}
    assert len(keys) == 3


def test_passes_count_the_later_stages_for_half_of_the_images():
    assert evaluation_passes("clean") == 1
    assert evaluation_passes("pgd20") == 41
    assert evaluation_passes("pgd20,cw") == 61


# Attacks


@pytest.fixture(scope="module")
def linear():
    """Two classes, so that every attack that rises along the gradient ends in the same corner of the ball."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)).requires_grad_(False)


@pytest.fixture(scope="module")
def batch(linear):
    images = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return images, linear(images).argmax(1)


def corner(linear, images, labels, epsilon):
    weights = linear[1].weight
    away = (weights[1 - labels] - weights[labels]).sign().view_as(images)
    return (images + epsilon * away).clamp(0, 1)


@pytest.mark.parametrize("attack", ["pgd20", "cw", "margin-t"])
def test_on_a_linear_model_the_worst_corner_is_found(attack, linear, batch):
    images, labels = batch
    found = GRADIENT_ATTACKS[attack](linear, images, labels, epsilon=0.2, noise=noise())
    assert torch.allclose(found, corner(linear, images, labels, 0.2), atol=1e-6)


# attack -> (passes where nobody is fooled, which of them is the first at a point of the attack)
PASSES = {
    "pgd20": (20, 0),
    "cw": (20, 0),
    "pgd20-t": (20, 0),
    "kl20": (1 + 20, 1),
    "margin-t": (1 + 3 * (20 + 1), 1),
    "pgd50-10": (10 * (50 + 1), 0),
}


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_steps_are_as_many_as_the_name_says_and_a_quarter_of_epsilon_each(attack, batch):
    class Watched(nn.Sequential):
        def forward(self, images):
            seen.append(images.detach().clone())
            return super().forward(images)

    seen, images, epsilon = [], batch[0], 0.02
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Watched(nn.Flatten(), nn.Linear(16, 5)).requires_grad_(False)
    model[1].bias[0] += 4  # class 0 stands
    labels = torch.zeros(len(images), dtype=torch.long)
    GRADIENT_ATTACKS[attack](model, images, labels, epsilon=epsilon, noise=noise())
    passes, first = PASSES[attack]
    assert len(seen) == passes
    assert (seen[first + 1] - seen[first]).abs().max().item() == pytest.approx(epsilon / 4, rel=1e-2)


def test_restarts_find_the_corner_of_those_who_stand_and_fool_all_others(linear, batch):
    images, labels = batch
    found = pgd_restarts(linear, images, labels, epsilon=0.4, noise=noise(), steps=50, restarts=2)
    worst = corner(linear, images, labels, 0.4)
    stands = linear(worst).argmax(1) == labels
    assert 0 < stands.sum() < len(stands)
    assert torch.equal(linear(found).argmax(1) == labels, stands)
    assert torch.allclose(found[stands], worst[stands], atol=1e-6)


def test_targets_are_the_likeliest_wrong_classes_and_one_that_gives_way_is_enough():
    # Class 1 is the likeliest wrong one and can't be reached; class 2, the next, can; class 3 is never tried.
    weights = torch.tensor([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4))
    with torch.no_grad():
        model[1].weight.copy_(weights)
        model[1].bias.copy_(torch.tensor([1.0, 0.9, -1.0, -9.0]))
    images, labels = torch.full((1, 1, 1, 2), 0.3), torch.tensor([0])
    one, two = (
        margin_t(model, images, labels, epsilon=0.3, noise=noise(), steps=20, targets=targets) for targets in (1, 2)
    )
    assert model(one).argmax(1).item() == 0
    assert model(two).argmax(1).item() == 2
    assert two[0, 0, 0, 0].item() == pytest.approx(0.6)


def test_cw_lets_go_of_what_is_fooled_by_more_than_its_confidence(linear, batch):
    class Confident(nn.Module):
        def forward(self, images):
            return 1e4 * linear(images)

    images, labels = batch
    start = uniform_start(images, 1e-3, noise())
    assert torch.equal(GRADIENT_ATTACKS["cw"](Confident(), images, 1 - labels, epsilon=1e-3, noise=noise()), start)
    assert not torch.equal(GRADIENT_ATTACKS["cw"](Confident(), images, labels, epsilon=1e-3, noise=noise()), start)


def test_restarts_keep_what_fools_the_model_else_the_highest_loss(natural_net, splits):
    model, chosen = copy.deepcopy(natural_net).double(), fixed_subset(splits.test, 24)
    images, labels = chosen.floats().double(), chosen.labels
    images, labels = images[model(images).argmax(1) == labels], labels[model(images).argmax(1) == labels]
    epsilon, stream, points, losses = 0.075, noise(), [], []
    for _ in range(3):
        current = uniform_start(images, epsilon, stream)
        for _ in range(4):
            current.requires_grad_()
            logits = model(current)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), current)
            moved = (current + epsilon / 4 * gradient.sign()).detach()
            moved = torch.clamp(images + (moved - images).clamp(-epsilon, epsilon), 0, 1)
            correct = (logits.argmax(1) == labels).view(-1, 1, 1, 1)
            current = torch.where(correct, moved, current).detach()
        points.append(current)
        losses.append(F.cross_entropy(model(current), labels, reduction="none").detach())
    fooled = torch.stack([model(point).argmax(1) != labels for point in points])
    kept = torch.where(fooled.any(0), fooled.int().argmax(0), torch.stack(losses).argmax(0))
    expected = torch.stack([points[restart][row] for row, restart in enumerate(kept)])
    found = pgd_restarts(model, images, labels, epsilon=epsilon, noise=noise(), steps=4, restarts=3)
    assert torch.allclose(found, expected, atol=1e-9)
    assert torch.equal(model(found).argmax(1) != labels, fooled.any(0))
    assert fooled[0].sum() < fooled.any(0).sum() < len(labels)
    assert len(set(kept[~fooled.any(0)].tolist())) > 1


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_attacks_stay_in_the_ball_and_in_the_pixels(attack, natural_net, splits):
    images = fixed_subset(splits.test, 10)
    found = GRADIENT_ATTACKS[attack](natural_net, images.floats(), images.labels, epsilon=0.03, noise=noise())
    assert (found - images.floats()).abs().max() <= 0.03 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_who_falls_does_not_shift_the_noise_of_the_next_batch(batch):
    images = batch[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).requires_grad_(False)
    wrong = (model(images).argmax(1) + 1) % 5  # all are taken at once
    for attack in (partial(pgd_restarts, restarts=3), partial(margin_t, targets=3)):
        used, fresh = noise(), noise()
        attack(model, images, wrong, epsilon=0.01, noise=used, steps=2)
        for _ in range(3):
            fresh.uniform(images, 0, 1)
        assert torch.equal(used.uniform(images, 0, 1), fresh.uniform(images, 0, 1))


def test_a_fast_search_that_is_misled_by_its_rounding_searches_again_in_float32(splits):
    """Logits near 100 are multiples of a half in bfloat16: images of class 1 seem to be taken before they are."""

    class High(nn.Module):
        def __init__(self):
            super().__init__()
            weights = 0.002 * torch.tensor([[1.0] * 32 + [-1.0] * 32])  # is the upper half the brighter one?
            self.register_buffer("weights", torch.cat([weights, -weights]))

        def forward(self, images):
            logits = F.linear(images.flatten(1), self.weights, torch.full((2,), 100.0))
            types.add(logits.dtype)
            return logits

    types, model, images = set(), High(), fixed_subset(splits.test, 20)
    images = replace(images, labels=model(images.floats()).argmax(1))
    assert 0 < images.labels.sum() < 20
    protocol = replace(PROTOCOL, attack="pgd50-10", epsilon="1")
    types.clear()
    assert not any(evaluate_range(model, images, protocol, 0, 20).standing["pgd50-10"])
    assert types == {torch.float32}
    fast = replace(protocol, precision=FAST)
    assert not any(evaluate_range(model, images, fast, 0, 20).standing["pgd50-10"])
    assert types == {torch.float32, torch.bfloat16}


def test_a_protocol_is_cut_into_shards_and_says_what_was_spent_on_training():
    assert replace(PROTOCOL, samples=50, shard=20).ranges() == [(0, 20), (20, 40), (40, 50)]
    assert replace(PROTOCOL, training="small, 3 epochs").key == f"{PROTOCOL.key}; small, 3 epochs"


def test_the_images_that_are_attacked_are_the_same_in_every_version_and_an_evaluation_says_which():
    assert subset_indices(297, 5).tolist() == [36, 41, 159, 206, 288]
    protocol, flags = replace(PROTOCOL, data="digits 8x8", samples=5), Flags(1, 3, {"clean": (True, False)})
    assert EvaluationResult(protocol, "abc", 0, flags).images == [41, 159]
    assert EvaluationResult(replace(protocol, split="held-out"), "abc", 0, flags).images == []


def test_a_list_ends_at_the_images_that_no_attack_takes(natural_net, splits):
    images = fixed_subset(splits.test, 40)
    protocol = replace(PROTOCOL, epsilon="0.07")
    found = evaluate_range(natural_net, images, replace(protocol, attack="pgd20,pgd50-10,cw"), 0, 40).standing
    assert found["pgd20"] == evaluate_range(natural_net, images, protocol, 0, 40).standing["pgd20"]
    assert list(found) == ["clean", "pgd20", "pgd50-10", "cw"]
    counts = [sum(flags) for flags in found.values()]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 0


def test_an_answer_that_is_not_finite_is_wrong(splits):
    class Overflowing(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 10), torch.nan)

    images = fixed_subset(splits.test, 40)
    flags = evaluate_range(Overflowing(), images, replace(PROTOCOL, attack="clean"), 0, 40)
    assert not any(flags.standing["clean"])


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_an_image_with_answers_that_are_not_finite_around_it_does_not_stand(attack):
    class Brittle(nn.Module):
        """Answers with class 0, but with NaN a little away from gray images."""

        def forward(self, images):
            away = images.flatten(1) - 0.5
            first = 1 + 0.1 * away.mean(1) + 0 * (0.01 - away.abs().amax(1)).log()
            return torch.stack([first, -first, 0 * first], 1)

    gray = torch.full((4, 1, 4, 4), 0.5)
    found = GRADIENT_ATTACKS[attack](Brittle(), gray, torch.zeros(4, dtype=torch.long), epsilon=0.1, noise=noise())
    assert Brittle()(gray).argmax(1).tolist() == [0] * 4
    assert not Brittle()(found).isfinite().any()


@pytest.mark.parametrize(("stage", "fewest"), [("apgd-t", 4), ("apgd-dlr", 3)])
def test_few_classes_are_attacked_as_far_as_the_loss_is_defined(stage, fewest, splits):
    class Few(nn.Module):
        """The mean brightness of a corner of the image votes for a class."""

        def __init__(self, num_classes):
            super().__init__()
            self.num_classes = num_classes

        def forward(self, images):
            corners = images.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).flatten(1)
            return torch.cat([corners, 0.5 * corners.mean(1, keepdim=True)], 1)[:, : self.num_classes]

    images = fixed_subset(splits.test, 40)
    few = Few(fewest)
    images = replace(images, labels=few(images.floats()).argmax(1))
    protocol = replace(PROTOCOL, attack=stage, epsilon="0.1")
    assert sum(evaluate_range(few, images, protocol, 0, 4).standing[stage]) < 4
    with pytest.raises(InvalidInput, match=f"{stage} needs at least {fewest} classes for its loss; this model has"):
        evaluate_range(Few(fewest - 1), replace(images, labels=images.labels * 0), protocol, 0, 40)


# The model's output


class Fixed(nn.Module):
    """Answers with what `make` gives for the number of images."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(len(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: torch.zeros(n, 100), r"float32 \[3, 100\] for 3 images; expected logits \[3, 10\]"),
        (lambda n: torch.zeros(n), r"\[3\] for 3 images"),
        (lambda n: torch.zeros(n, 10, dtype=torch.long), "int64"),
        (lambda n: (torch.zeros(n, 10), None), "returns tuple"),
        (lambda n: torch.zeros(n, 10, dtype=torch.bfloat16), "torch.bfloat16; expected torch.float32"),
        (lambda n: torch.zeros(n, 10, dtype=torch.double), "torch.float64; expected torch.float32"),
        (lambda n: torch.full((n, 10), torch.inf), "not finite"),
        (lambda n: torch.randn(n, 10), "answers differently when asked again"),
        (
            lambda n: torch.zeros(n, 9) @ torch.zeros(9, 10).double(),
            r"fails on float32 images \[3, 1, 8, 8\].*same dtype",
        ),
    ],
)
def test_what_cannot_be_attacked_is_refused(make, message):
    with pytest.raises(InvalidInput, match=f"model: .*{message}"):
        check_classifier(Fixed(make), torch.zeros(3, 1, 8, 8), 10, gradients=False)


@pytest.mark.parametrize(("share", "refused"), [(1e-2, True), (1e-6, False)])
def test_a_random_defense_is_told_from_kernels_that_round_otherwise(share, refused):
    logits, asked = 100 * torch.randn(3, 10), iter(range(2))
    model = Fixed(lambda n: logits * (1 + share * next(asked)))
    if refused:
        with pytest.raises(InvalidInput, match="answers differently when asked again"):
            check_classifier(model, torch.zeros(3, 1, 8, 8), 10, gradients=False)
    else:
        assert check_classifier(model, torch.zeros(3, 1, 8, 8), 10, gradients=False) == ()


def test_what_only_training_does_is_no_random_defense():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    assert check_classifier(model, torch.ones(3, 1, 8, 8), 10, gradients=True) == ()
    assert not model.training


class Rounding(nn.Module):
    """Preprocessing that lets no gradient through, before a net whose parameters have one."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net((images.detach() * 16).round() / 16)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_gradient_that_is_cut_off_is_refused_where_it_is_followed_alone(trainable, natural_net, digits):
    model = Rounding(copy.deepcopy(natural_net).requires_grad_(trainable))
    assert check_classifier(model, digits[0][:3], 10, gradients=False) == ()
    with pytest.raises(InvalidInput, match=r"model: has no gradient at the images.*--attack square"):
        check_classifier(model, digits[0][:3], 10, gradients=True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_model_can_not_do_with_a_gradient_is_said_of_it(natural_net, digits):
    class InPlace(Rounding):
        def forward(self, images):
            return self.net(images.mul_(1))

    with pytest.raises(InvalidInput, match=r"model: fails on .*in-place"):
        check_classifier(InPlace(natural_net), digits[0][:3], 10, gradients=True)


def test_square_and_no_attack_need_no_gradient():
    assert not any(map(needs_gradients, ("clean", "square")))
    assert all(map(needs_gradients, (*sorted(set(STAGES) - {"square"}), "autoattack", "pgd20,square")))


def test_probabilities_are_warned_of_and_logits_are_not(natural_net, digits):
    images = digits[0][:20]
    assert check_classifier(natural_net, images, 10, gradients=True) == ()
    (warning,) = check_classifier(nn.Sequential(natural_net, nn.Softmax(1)), images, 10, gradients=True)
    assert "looks like probabilities" in warning
    assert check_classifier(nn.Sequential(natural_net, nn.LogSoftmax(1)), images, 10, gradients=True) == ()


@pytest.mark.parametrize(
    "logits",
    [torch.arange(10.0), torch.arange(10.0) - 4.4, torch.eye(10)[0] * 1.5],
    ids=["positive", "sum 1", "sum 1.5"],
)
def test_rows_that_only_resemble_probabilities_are_logits(logits):
    assert logits.min() >= 0 or logits.sum() == pytest.approx(1)
    assert check_classifier(Fixed(lambda n: logits.repeat(n, 1)), torch.zeros(3, 1, 8, 8), 10, gradients=False) == ()
