"""DER, AAER and gradient alignment: closed forms, limit cases, and halves of a batch on two ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.trainers import formulas
from tests.trainers.formulas import B, K, batch
from trainers import catalog
from trainers.config import parse
from trainers.methods.regularizers import aaer, der, grad_align
from trainers.methods.step_tensors import StepTensors, abnormal, over_global


@pytest.fixture
def b():
    return batch()


def step(b, **changes):
    tensors = StepTensors(b.adversarial, b.labels, b.natural, b.start, b.natural_gradient, b.noisy_gradient)
    return replace(tensors, **changes)


def test_abnormal_examples_are_those_the_attack_made_strictly_easier(b):
    assert abnormal(b.start, b.adversarial, b.labels).tolist() == formulas.is_abnormal(b).tolist()
    assert not abnormal(b.start, b.start, b.labels).any()


# DER


@pytest.mark.parametrize("reference", ["start", "natural"])
@pytest.mark.parametrize("divide_by", ["batch", "samples"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_der_on_abnormal_examples_is_the_formula(b, reference, divide_by, gamma):
    chosen = formulas.is_abnormal(b, b.start if reference == "start" else b.natural)
    expected = formulas.der(b, 3, gamma, chosen) * (1 if divide_by == "batch" else B / chosen.sum())
    torch.testing.assert_close(der(step(b), beta=3.0, gamma=gamma, reference=reference, divide_by=divide_by), expected)


@pytest.mark.parametrize("detach_natural", [False, True])
def test_der_gradient_in_closed_form_with_the_hinge_active(b, detach_natural):
    z, z_adv = b.natural.requires_grad_(), b.adversarial.requires_grad_()
    penalty = der(step(b), beta=float(B), gamma=0.0, samples="all", detach_natural=detach_natural)
    at_natural, at_adversarial = torch.autograd.grad(penalty, (z, z_adv), allow_unused=True)
    one_hot = F.one_hot(b.labels, K).double()
    marginal = (z_adv.logsumexp(1) - z.logsumexp(1))[:, None]
    joint = ((z_adv - z) * one_hot).sum(1, keepdim=True)
    torch.testing.assert_close(at_adversarial, 2 * (marginal * z_adv.softmax(1) + joint * one_hot))
    if detach_natural:
        assert at_natural is None
    else:
        torch.testing.assert_close(at_natural, -2 * (marginal * z.softmax(1) + joint * one_hot))


def test_der_has_neither_value_nor_gradient_below_gamma(b):
    norms = formulas.squared_norm(b)
    middle = norms.sort().values[formulas.B // 2 - 1 : formulas.B // 2 + 1]
    z_adv, gamma = b.adversarial.requires_grad_(), float(middle.mean())  # on neither: rounding would decide
    (gradient,) = torch.autograd.grad(der(step(b), beta=1.0, gamma=gamma, samples="all"), z_adv)
    assert (gradient.abs().sum(1) > 0).tolist() == (norms > gamma).tolist()
    assert der(step(b), beta=1.0, gamma=float(norms.max()) + 1e-9, samples="all") == 0


def test_der_ignores_normal_examples(b):
    z_adv = b.adversarial.requires_grad_()
    (gradient,) = torch.autograd.grad(der(step(b), beta=1.0, gamma=0.0), z_adv)
    assert (gradient.abs().sum(1) > 0).tolist() == formulas.is_abnormal(b).tolist()


def test_der_does_not_change_when_one_constant_is_added_everywhere(b):
    everywhere = replace(b, natural=b.natural + 4, adversarial=b.adversarial + 4, start=b.start + 4)
    one_sided = replace(b, adversarial=b.adversarial + 4, start=b.start + 4)
    at_home = der(step(b), beta=1.0, gamma=0.1)
    torch.testing.assert_close(der(step(everywhere), beta=1.0, gamma=0.1), at_home)
    assert der(step(one_sided), beta=1.0, gamma=0.1) != at_home


# AAER


@pytest.mark.parametrize("loss_gradient", [False, True])
def test_aaer_is_the_formula(b, loss_gradient):
    normal = int((~formulas.is_abnormal(b)).nonzero()[0])
    b.start[normal] = b.adversarial[normal]  # a loss that stays is none that fell
    b.adversarial.requires_grad_()
    ours = aaer(step(b), strength=2.0, loss_strength=2.5, variation_strength=1.5, loss_gradient=loss_gradient)
    expected = 2 * formulas.aaer(b, 2.5, 1.5, loss_gradient)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(*(torch.autograd.grad(part, b.adversarial) for part in (ours, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_aaers_loss_term_moves_weights_only_where_it_is_asked_to(b):
    z_adv = b.adversarial.requires_grad_()
    strengths = {"strength": 1.0, "loss_strength": 2.5, "variation_strength": 0.0}
    silent = aaer(step(b), **strengths)
    assert silent > 0
    (gradient,) = torch.autograd.grad(silent, z_adv)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(aaer(step(b), **strengths, loss_gradient=True), z_adv)
    assert (gradient.abs().sum(1) > 0).tolist() == formulas.is_abnormal(b).tolist()


def test_aaer_is_zero_where_one_of_its_groups_is_empty(b):
    same = step(b, start_logits=b.adversarial)
    easier = step(b, start_logits=b.adversarial - 9 * F.one_hot(b.labels, K))
    for one_sided in (same, easier):
        assert abnormal(one_sided.start_logits, b.adversarial, b.labels).float().mean() in (0, 1)
        assert aaer(one_sided, strength=1.0, loss_strength=2.5, variation_strength=1.5) == 0


def test_aaer_does_not_reward_logits_that_vary_less_than_the_normal_ones(b):
    chosen = formulas.is_abnormal(b)[:, None]
    b.start = torch.where(chosen, b.start, b.start + 50)
    z_adv = b.adversarial.requires_grad_()
    penalty = aaer(step(b), strength=1.0, loss_strength=0.0, variation_strength=1.5)
    assert penalty == 0
    assert not torch.autograd.grad(penalty, z_adv)[0].any()


# Gradient alignment


def test_alignment_is_zero_for_parallel_and_twice_the_strength_for_opposite_gradients(b):
    g = b.natural_gradient
    assert grad_align(step(b, noisy_gradient=3 * g), strength=0.2).item() == pytest.approx(0, abs=1e-12)
    assert grad_align(step(b, noisy_gradient=-g), strength=0.2).item() == pytest.approx(0.4)


def test_a_vanished_gradient_does_not_count(b):
    some, noisy = b.natural_gradient.clone(), b.noisy_gradient.clone()
    some[:4], noisy[4:-1] = 0, 0
    penalty = grad_align(step(b, natural_gradient=some, noisy_gradient=noisy.requires_grad_()), strength=1.0)
    torch.testing.assert_close(penalty, formulas.grad_align(part(b, slice(B - 1, B)), 1.0))
    (gradient,) = torch.autograd.grad(penalty, noisy)
    assert gradient.isfinite().all()
    assert not gradient[:-1].any()
    assert grad_align(step(b, natural_gradient=torch.zeros_like(some)), strength=1.0) == 0


def test_alignment_of_tiny_single_precision_gradients_is_not_lost(b):
    tiny = [1e-17 * part.float() for part in (b.natural_gradient, b.noisy_gradient)]
    found = grad_align(step(b, natural_gradient=tiny[0], noisy_gradient=tiny[1]), strength=1.0)
    torch.testing.assert_close(found.double(), formulas.grad_align(b, 1.0), rtol=1e-4, atol=1e-5)


def test_a_mean_over_the_ranks_may_rest_on_one_sample_of_one_of_them():
    assert over_global(torch.tensor([3.0, 0.0]), torch.tensor(0.5)) == 6
    assert over_global(torch.zeros(2), torch.tensor(0.0)) == 0


# Two ranks, each with its own rows: the mean of their terms and gradients is the term of the whole batch


def part(b, rows):
    """The part of a batch that one rank has."""
    return type(b)(**{name: value[rows] for name, value in vars(b).items()})


@pytest.mark.parametrize(
    ("regularizer", "settings"),
    [
        (der, {"beta": 3.0, "gamma": 0.1}),
        (der, {"beta": 3.0, "gamma": 0.1, "divide_by": "samples"}),
        (aaer, {"strength": 1.0, "loss_strength": 2.5, "variation_strength": 1.5, "loss_gradient": True}),
        (grad_align, {"strength": 0.7}),
    ],
)
def test_the_mean_over_ranks_is_the_term_of_the_global_batch_and_has_its_gradients(regularizer, settings):
    b = part(batch(seed=8), slice(0, 8))
    b.natural_gradient[1] = 0
    b.start[4:] += 5.5  # the normal ones, all on one rank, vary nearly as much as the abnormal ones on the other
    leaves = [tensor.requires_grad_() for tensor in (b.natural, b.adversarial, b.noisy_gradient)]
    whole = regularizer(step(b), **settings)
    ranks = [part(b, slice(0, 4)), part(b, slice(4, 8))]
    assert len({int(abnormal(r.start, r.adversarial, r.labels).sum()) for r in ranks}) == 2

    # Each rank's questions are answered by asking both: replay until every answer is known.
    answers = []
    while True:
        asked = [[], []]

        def mean(value, rank, asked=asked):
            asked[rank].append(value.detach())
            place = len(asked[rank]) - 1
            return answers[place] if place < len(answers) else value.detach()

        terms = [
            regularizer(step(r, mean_over_ranks=lambda value, rank=rank: mean(value, rank)), **settings)
            for rank, r in enumerate(ranks)
        ]
        if len(answers) == len(asked[0]):
            break
        place = len(answers)
        answers.append((asked[0][place] + asked[1][place]) / 2)
    together = (terms[0] + terms[1]) / 2
    torch.testing.assert_close(together, whole)
    gradients = [torch.autograd.grad(term, leaves, allow_unused=True) for term in (together, whole)]
    assert any(gradient is not None for gradient in gradients[0])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


# Settings of the papers


@pytest.mark.parametrize(
    ("raw", "loss", "variation"),
    [
        ({"method": "aaer", "data": "cifar10"}, 2.5, 1.5),
        ({"method": "aaer", "data": "cifar10", "attack": {"epsilon": "16/255"}}, 7.0, 3.25),
        ({"method": "aaer_n", "data": "cifar10", "attack": {"epsilon": "12/255"}}, 5.0, 0.55),
        ({"method": "aaer_n", "data": "digits", "attack": {"epsilon": 0.035}}, 1.5, 0.15),
        ({"method": "aaer_n", "data": "digits", "attack": {"epsilon": 0.1}}, 2.75, 0.75),
        ({"method": "aaer", "data": "cifar10", "attack": {"epsilon": "13/255"}}, 5.0, 2.75),
        ({"method": "aaer", "data": "cifar10", "attack": {"epsilon": "10/255"}}, 2.5, 1.5),
        ({"method": "aaer", "data": "cifar100", "attack": {"epsilon": "32/255"}}, 6.0, 2.25),
        ({"method": {"name": "aaer", "regularizer": {"loss_strength": 1}}, "data": "cifar10"}, 1, 1.5),
    ],
)
def test_aaer_takes_the_published_strengths_of_the_setting(raw, loss, variation):
    parameters = parse(raw).method.regularizer.parameters
    assert (parameters["loss_strength"], parameters["variation_strength"]) == (loss, variation)


@pytest.mark.parametrize(
    ("data", "epsilon", "given", "noticed"),
    [
        ("cifar10", "13/255", {}, True),
        ("cifar100", "32/255", {}, True),
        ("cifar10", "13/255", {"loss_strength": 4}, False),
        ("cifar10", "12/255", {}, False),
        ("digits", 0.1, {}, True),
    ],
)
def test_strengths_that_are_published_for_another_epsilon_are_worth_a_notice(data, epsilon, given, noticed):
    method = {"name": "aaer", "regularizer": given}
    notices = parse({"method": method, "data": data, "attack": {"epsilon": epsilon}}).notices
    assert [f"the nearest to {epsilon}" in notice for notice in notices] == [True] * noticed


@pytest.mark.parametrize(("epsilon", "strength"), [("8/255", 0.2), ("16/255", 2.0), (0.5, 2.0)])
def test_gradient_alignment_takes_the_published_strength(epsilon, strength):
    raw = {"method": "grad_align", "data": "cifar10", "attack": {"epsilon": epsilon}}
    assert parse(raw).method.regularizer.parameters["strength"] == pytest.approx(strength)


def test_der_on_top_of_every_base_method_takes_its_defaults_by_the_number_of_steps():
    for name in (name for name in catalog.PRESETS if name.endswith("_der")):
        method = parse({"method": name}).method
        single = catalog.INNER[method.inner.name].single_step
        parameters = method.regularizer.parameters
        expected = (100.0, "abnormal", 0.0) if single else (0.25, "all", 0.75)
        assert (parameters["beta"], parameters["samples"], parameters["start"]) == expected
