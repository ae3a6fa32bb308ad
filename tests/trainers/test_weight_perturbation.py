"""Adversarial weight perturbation: the published recipe of a proxy model, done without one."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainers.methods.step_tensors import identity
from trainers.methods.weight_perturbation import awp, perturbed
from trainers.models.build import build_model
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step

GAMMA = 0.01


@pytest.fixture
def model(experiment):
    return build_model(experiment({"model.width": 8})).double().train()


@pytest.fixture
def batch(digits):
    return digits[0][:32].double(), digits[1][:32]


def perturbation(model, batch, gamma=GAMMA):
    images, labels = batch
    return awp(model, lambda forward: F.cross_entropy(forward(images), labels), gamma=gamma, mean_over_ranks=identity)


def is_perturbed(name, parameter):
    return "weight" in name and parameter.dim() > 1


def test_it_is_that_of_an_ascent_step_on_a_copy(model, batch):
    """The published procedure, step by step: proxy, SGD ascent, difference, scaled to each layer's norm."""
    images, labels = batch
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-F.cross_entropy(proxy(images), labels)).backward()
    optimizer.step()
    ours = perturbation(model, batch)
    theirs = {}
    for (name, after), before in zip(proxy.named_parameters(), model.parameters(), strict=True):
        if is_perturbed(name, before):
            moved = (after - before).detach()
            theirs[name] = GAMMA * before.detach().norm() / (moved.norm() + 1e-20) * moved
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12)


def test_each_kernel_moves_by_gamma_of_its_norm_and_the_loss_rises(model, batch):
    images, labels = batch
    found = perturbation(model, batch)
    kernels = {name: p for name, p in model.named_parameters() if is_perturbed(name, p)}
    assert found.keys() == kernels.keys()
    for name, kernel in kernels.items():
        torch.testing.assert_close(found[name].norm(), GAMMA * kernel.norm())
    before = F.cross_entropy(model(images), labels)
    with perturbed(model, found):
        assert F.cross_entropy(model(images), labels) > before


def test_nothing_of_the_model_is_touched_by_finding_it(model, batch):
    before = copy.deepcopy(model.state_dict())
    perturbation(model, batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_weights_come_back_even_after_an_error(model, batch):
    before, moved = copy.deepcopy(dict(model.named_parameters())), False
    with contextlib.suppress(InterruptedError), perturbed(model, perturbation(model, batch)):
        moved = any(not torch.equal(before[name], value) for name, value in model.named_parameters())
        raise InterruptedError
    assert moved
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12)


def test_a_kernel_without_gradient_stays(model, batch):
    images, labels = batch
    unused = nn.Linear(3, 3).double()
    model.add_module("unused", unused)
    with pytest.raises(RuntimeError, match="not have been used"):
        perturbation(model, batch)
    zero = awp(
        model,
        lambda forward: F.cross_entropy(forward(images), labels) + 0 * unused.weight.sum(),
        gamma=GAMMA,
        mean_over_ranks=identity,
    )
    assert not zero["unused.weight"].any()


@pytest.mark.parametrize("name", ["sat_awp", "trades_awp"])
def test_a_step_of_rate_zero_leaves_the_weights(name, experiment, batch):
    settings = experiment({"method.name": name, "attack.steps": 2, "model.norm": "group"})
    model = build_model(settings).double().train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(
        model, build_method(settings), optimizer, *batch, Noise(generator("cpu", 0, "attack")), epoch_fraction=1.0
    )
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-12)


def test_the_update_is_that_of_the_gradient_at_the_perturbed_weights(experiment, batch):
    """One step by hand: x* from the unperturbed net, gradient and weight decay at θ + v, then v taken back."""
    settings = experiment({"method.name": "sat_awp", "attack.steps": 2})
    start = build_model(settings).double().train()
    ours, by_hand = copy.deepcopy(start), copy.deepcopy(start)
    method, images, labels = build_method(settings), *batch
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, weight_decay=0.01)
    train_step(ours, method, optimizer, images, labels, Noise(generator("cpu", 0, "attack")), epoch_fraction=1.0)

    adversarial = method.attacker(by_hand, images, labels, Noise(generator("cpu", 0, "attack"))).images
    change = perturbation(by_hand, (adversarial, labels))
    shifted = {name: p.detach() + change.get(name, 0) for name, p in by_hand.named_parameters()}
    by_hand.load_state_dict(shifted, strict=False)
    F.cross_entropy(by_hand(adversarial), labels).backward()
    for name, parameter in ours.named_parameters():
        decayed = by_hand.get_parameter(name).grad + 0.01 * shifted[name]
        expected = shifted[name] - 0.1 * decayed - change.get(name, 0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, by_hand.get_buffer(name))


def test_it_acts_from_its_start_on(experiment, batch):
    settings = experiment({"method.name": "trades_awp", "attack.steps": 2, "method.weight_perturbation.start": 0.5})
    ends = []
    for name, epoch_fraction in (("trades", 0.0), ("trades_awp", 0.49), ("trades_awp", 0.5)):
        chosen = settings if name == "trades_awp" else experiment({"method.name": name, "attack.steps": 2})
        model = build_model(chosen).double().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        noise = Noise(generator("cpu", 0, "attack"))
        train_step(model, build_method(chosen), optimizer, *batch, noise, epoch_fraction=epoch_fraction)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])
