"""Weights at known energies and margins, and what gradient they let through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.trainers.formulas import K, batch, energy_weight, margin_weight, probabilities
from trainers.methods import objective
from trainers.methods.step_tensors import StepTensors
from trainers.methods.weighting import energy, margin, misclassification


def step(natural=None, adversarial=None, labels=None, **more):
    labels = torch.zeros(1, dtype=torch.long) if labels is None else labels
    return StepTensors(natural if adversarial is None else adversarial, labels, natural, **more)


@pytest.mark.parametrize(
    ("value", "weight"), [(0, 1.4427), (1, 0.7615), (2, 0.4702), (5, 0.1997), (10, 0.1), (20, 0.05), (200, 0.005)]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_energy_weight_at_known_energies(value, weight, sign):
    logits = torch.full((1, K), -sign * value - np.log(K))
    assert energy(step(logits)).item() == pytest.approx(weight, abs=5e-5)


@pytest.mark.parametrize(("classes", "weight"), [(10, 0.4170), (100, 0.2167), (200, 0.1886)])
def test_energy_weight_of_an_untrained_net(classes, weight):
    assert energy(step(torch.zeros(1, classes))).item() == pytest.approx(weight, abs=5e-5)


@pytest.mark.parametrize("name", ["energy", "margin"])
def test_no_gradient_flows_through_weights(name):
    b = batch()
    b.natural.requires_grad_()
    b.adversarial.requires_grad_()
    constant = {
        "energy": energy_weight(b.natural),
        "margin": margin_weight(b.adversarial, b.labels, 10, -0.5),
    }[name]
    loss = objective("trades", weighting=name)(b.natural, b.adversarial, b.labels)
    plain = objective("trades").outer(b.natural, b.adversarial, b.labels)
    fixed = (constant * (plain.classification + plain.divergence)).mean()
    inputs = (b.natural, b.adversarial)
    for ours, expected in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(fixed, inputs), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_gradient_of_marts_factor_is_kept():
    b = batch()
    b.natural.requires_grad_()
    (gradient,) = torch.autograd.grad(misclassification(step(b.natural, labels=b.labels)).sum(), b.natural)
    p = probabilities(b.natural.detach())
    true = p.gather(1, b.labels[:, None])
    torch.testing.assert_close(gradient, true * (p - torch.nn.functional.one_hot(b.labels, K)))


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_a_margin_weight_does_not_depend_on_how_many_classes_share_nothing(classes):
    """p_y = 0.7 and the best other 0.3, however many classes have none: sigmoid(10 (0.3 - 0.7 - 0.5)) · 3."""
    logits = torch.full((1, classes), -1e4, dtype=torch.float64)
    logits[0, :2] = torch.log(torch.tensor([0.7, 0.3], dtype=torch.float64))
    weight = margin(step(logits), slope=10.0, bias=-0.5, normalize="x3")
    assert weight.item() == pytest.approx(3 / (1 + np.exp(9)))


def test_margin_weights_are_normalized_as_asked():
    b = batch()
    raw, tripled, meaned = (
        margin(step(b.natural, b.adversarial, b.labels), slope=2.0, bias=0.0, normalize=how)
        for how in ("none", "x3", "mean1")
    )
    torch.testing.assert_close(tripled, 3 * raw)
    torch.testing.assert_close(meaned, raw / raw.mean())
    assert 0 < raw.min() < raw.max() < 1


def test_the_mean_of_margin_weights_is_that_of_all_ranks():
    b = batch()
    halves = [slice(0, 4), slice(4, 8)]
    settings = {"slope": 2.0, "bias": 0.0}
    raw = margin(step(b.natural, b.adversarial, b.labels), normalize="none", **settings)[:8]
    asked = []

    def mean1(half, mean_over_ranks):
        own = StepTensors(b.adversarial[half], b.labels[half], mean_over_ranks=mean_over_ranks)
        return margin(own, normalize="mean1", **settings)

    for half in halves:
        mean1(half, lambda own: asked.append(own) or own)
    for half in halves:
        torch.testing.assert_close(mean1(half, lambda _: sum(asked) / 2), raw[half] / raw.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("slope", [0.0, 10.0, 100.0, 400.0, 600.0])
def test_margin_weights_of_mean_one_are_the_closed_form_however_steep(slope, bias, dtype):
    """From surely right (PM = -1) to surely wrong, and all of them right, whose weights are all tiny."""
    for chances in ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.125]):
        wrong = torch.tensor(chances, dtype=torch.float64)
        logits = torch.stack([(1 - wrong).log(), wrong.log()], dim=1).clamp(min=-1e4).to(dtype)
        weights = margin(step(logits, labels=torch.zeros(len(wrong), dtype=torch.long)),
                         slope=slope, bias=bias, normalize="mean1")  # fmt: skip
        logarithms = -np.logaddexp(0.0, -slope * (2 * wrong.numpy() - 1 + bias))
        expected = np.exp(logarithms - logarithms.max())
        expected /= expected.mean()
        assert weights.dtype == dtype
        torch.testing.assert_close(weights.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-30)


def test_no_slope_is_too_steep_for_margin_weights_of_mean_one():
    logits = torch.tensor([[50.0, 0.0], [5.0, 0.0], [50.0, 0.0]])
    labels = torch.zeros(3, dtype=torch.long)
    weights = margin(step(logits, labels=labels), slope=1e5, bias=-0.5, normalize="mean1")
    assert weights.mean().item() == pytest.approx(1)


def test_more_wrong_is_more_weight():
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    labels = torch.zeros(3, dtype=torch.long)
    for weights in (
        margin(step(logits, labels=labels), slope=10.0, bias=-0.5, normalize="x3"),
        misclassification(step(logits, labels=labels)),
    ):
        assert weights.tolist() == sorted(weights.tolist())
        assert weights[0] < weights[1] < weights[2]
