"""A training step does what the catalog says: its cost, no wait for the device, what it moves and what it leaves."""

from __future__ import annotations

import copy
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counting import HostSyncs, Kernels
from tests.trainers import formulas
from trainers import catalog
from trainers.data.batches import crop_and_flip
from trainers.data.images import to_floats
from trainers.methods.outer import ce_adv
from trainers.models.build import build_model
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step
from trainers.totals import EpochTotals

aten = torch.ops.aten


def step_of(settings, splits, device="cpu"):
    """A function that takes one training step of the settings, with every slot acting."""
    model = build_model(settings).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    method = build_method(settings)
    images, labels = splits.train.floats(0, 8).to(device), splits.train.labels[:8].to(device)
    noise = Noise(generator(device, 0, "attack"))
    return model, lambda: train_step(model, method, optimizer, images, labels, noise, epoch_fraction=1.0)


def preset(name, experiment, **values):
    single = catalog.INNER[catalog.PRESETS[name].slot("inner")["name"]].single_step
    return experiment({"method.name": name} | values | ({} if single else {"attack.steps": 3}))


class Passes(TorchDispatchMode):
    """Counts passes through the second convolution: forward 1, backward to its input 1, to its weight 1."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.passes = shape, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is aten.convolution.default and args[1].shape == self.shape:
            self.passes += 1
        if operation is aten.convolution_backward.default and args[2].shape == self.shape:
            self.passes += sum(args[-1][:2])
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_costs_the_passes_of_the_catalog(name, experiment, splits):
    settings = preset(name, experiment)
    _, step = step_of(settings, splits)
    with Passes((8, 4, 3, 3)) as counted:
        step()
    assert counted.passes == settings.training_passes


@pytest.mark.parametrize("network", ["resnet18", "preact_resnet18"])
def test_a_single_step_update_of_resnet18_is_at_most_330_kernels(network, experiment, splits):
    settings = experiment({"method.name": "fgsm_rs", "model": {"name": network, "width": 2}})
    _, step = step_of(settings, splits)
    with Kernels() as kernels:
        step()
    assert 200 < kernels.count <= 330


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_never_waits_for_the_device(name, experiment, splits):
    _, step = step_of(preset(name, experiment), splits)
    with HostSyncs() as syncs:
        step()
    assert syncs.seen == []


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_its_crops_and_its_totals_run_where_no_number_can_be_read(name, experiment, alone):
    """Tensors of the meta device have a shape and no content: whoever asks for one (`.item()`, `.tolist()`) fails."""
    meta = torch.device("meta")
    settings = preset(name, experiment)
    model, batch = build_model(settings).to(meta).train(), torch.zeros(8, dtype=torch.long, device=meta)
    pictures = torch.empty(8, 8, 8, 1, dtype=torch.uint8, device=meta)
    images = to_floats(crop_and_flip(pictures, batch, batch, batch.bool(), reflect=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = train_step(
        model, build_method(settings), optimizer, images, batch, Noise(None), epoch_fraction=1.0, attacked=batch.bool()
    )
    EpochTotals(replace(alone, device=meta), 8, comparable=True).add(step)
    with pytest.raises(RuntimeError, match="meta"):
        step.loss.item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_never_waits_for_a_real_device(name, experiment, splits):
    _, step = step_of(preset(name, experiment), splits, "cuda")
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_detector_of_host_syncs_detects(value):
    with HostSyncs() as syncs:
        logits = torch.tensor([value])
        logits.item()
        logits[logits > 0.5]
        logits.nonzero()
    assert {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.index.Tensor"} <= set(syncs.seen)


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_moves_the_weights_and_sums_over_its_rows(name, experiment, splits):
    # An ε that is large enough for abnormal examples, and no change of energy that is free of charge.
    free = {"method.regularizer.gamma": 0} if name.endswith("_der") else {}
    settings = preset(name, experiment, **{"attack.epsilon": 0.8}, **free)
    model, step = step_of(settings, splits)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result = step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert result.loss.isfinite()
    assert 0 <= result.adversarial_correct <= 8
    assert (result.weight_sum == 8) == (catalog.PRESETS[name].weighting is None)
    assert (result.regularizer != 0) == (catalog.PRESETS[name].regularizer is not None)
    assert result.perturbation_norm > 0


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
def test_steps_are_those_of_gradient_descent_by_hand_and_tell_what_was_met(batch_norm, experiment, digits):
    settings = experiment(
        {"method": {"name": "fgsm_rs_der", "weighting": "energy", "regularizer": {"gamma": 0.5}}}
        | {"attack": {"epsilon": 0.8, "batch_norm": batch_norm}}
    )
    images, labels = digits[0][: formulas.B].double(), digits[1][: formulas.B]
    model, by_hand = (build_model(settings).double().train() for _ in range(2))
    optimizer, method = torch.optim.SGD(model.parameters(), lr=0.1), build_method(settings)
    noises = [Noise(generator("cpu", 0, "attack")) for _ in range(2)]
    abnormal = 0
    for _ in range(3):
        result = train_step(model, method, optimizer, images, labels, noises[0], epoch_fraction=1.0)
        crafted = method.attacker(by_hand, images, labels, noises[1])
        start = copy.deepcopy(by_hand)(crafted.start_images).detach()  # its statistics are not the update's
        met = formulas.Batch(by_hand(images), by_hand(crafted.images), start, labels, None, None)
        easier, penalty = formulas.is_abnormal(met), formulas.der(met, 100, 0.5, formulas.is_abnormal(met))
        weights = formulas.energy_weight(met.natural)
        loss = (weights * formulas.ce(met.adversarial, labels)).mean() + penalty
        loss.backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
        expected = {
            "loss": loss.detach(),
            "adversarial_correct": (met.adversarial.argmax(1) == labels).sum(),
            "abnormal": easier.sum(),
            "weight_sum": weights.sum(),
            "regularizer": penalty.detach(),
            "perturbation_norm": (crafted.images - images).square().sum((1, 2, 3)).sqrt().sum(),
        }
        assert {name: float(value) for name, value in vars(result).items()} == pytest.approx(
            {name: float(value) for name, value in expected.items()}
        )
        assert not any(value.requires_grad for value in vars(result).values())
        abnormal += int(easier.sum())
    assert 0 < abnormal < 3 * formulas.B


# What the loss compares was seen in one batch-norm mode


def seen_by_the_loss(settings, images, labels):
    """(StepTensors, copy of the net) whenever the objective was asked in one step from the initial weights."""
    model, seen = build_model(settings).train(), []
    method = build_method(settings)
    spied = replace(method, objective=Spy(method.objective, lambda step: seen.append((step, copy.deepcopy(model)))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, spied, optimizer, images, labels, Noise(generator("cpu", 0, "attack")), epoch_fraction=1.0)
    return seen


class Spy:
    """An objective that tells what it is given."""

    def __init__(self, objective, tell):
        self._objective, self._tell = objective, tell

    def needs(self, epoch_fraction):
        return self._objective.needs(epoch_fraction)

    def terms(self, step, epoch_fraction):
        self._tell(step)
        return self._objective.terms(step, epoch_fraction)


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
@pytest.mark.parametrize("name", ["aaer", "fgsm_rs_der"])
def test_start_and_adversarial_logits_come_from_one_batch_norm_mode(name, batch_norm, experiment, digits):
    settings = experiment({"method.name": name, "attack.batch_norm": batch_norm})
    images, labels = digits[0][:64], digits[1][:64]
    ((step, _),) = seen_by_the_loss(settings, images, labels)
    model = build_model(settings).train()
    start = build_method(settings).attacker(model, images, labels, Noise(generator("cpu", 0, "attack"))).start_images
    torch.testing.assert_close(step.start_logits, build_model(settings).train()(start).detach())


@pytest.mark.parametrize("name", ["aaer", "fgsm_rs_der"])
def test_start_and_adversarial_logits_come_from_the_same_weights_also_where_these_are_perturbed(
    name, experiment, digits
):
    settings = experiment({"method.name": name, "method.weight_perturbation": {"name": "awp", "gamma": 0.5}})
    images, labels = digits[0][:64], digits[1][:64]
    noise = Noise(generator("cpu", 0, "attack"))
    attacked = build_method(settings).attacker(build_model(settings).train(), images, labels, noise)
    (plain, network), (moved, moved_network) = seen_by_the_loss(settings, images, labels)
    assert not torch.equal(plain.start_logits, moved.start_logits)
    for step, model in ((plain, network), (moved, moved_network)):
        torch.testing.assert_close(step.start_logits, model(attacked.start_images).detach())
        torch.testing.assert_close(step.adversarial_logits, model(attacked.images))


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
@pytest.mark.parametrize("inner", ["fgsm", "fgsm_rs"])
def test_both_gradients_of_the_alignment_come_from_train_mode(inner, batch_norm, experiment, digits):
    settings = experiment(
        {"method.name": "grad_align", "method.inner": inner, "attack.batch_norm": batch_norm, "attack.steps": 1}
    )
    images, labels = digits[0][:64], digits[1][:64]
    ((step, _),) = seen_by_the_loss(settings, images, labels)
    noise, epsilon = Noise(generator("cpu", 0, "attack")), float(settings.attack.epsilon)
    drawn = [noise.uniform(images, -epsilon, epsilon) for _ in range(2)]  # the first is the start of FGSM-RS
    for ours, shift in ((step.natural_gradient, 0), (step.noisy_gradient, drawn[inner == "fgsm_rs"])):
        x = (images + shift).requires_grad_()
        loss = torch.nn.functional.cross_entropy(build_model(settings).train()(x), labels, reduction="sum")
        torch.testing.assert_close(ours.detach(), torch.autograd.grad(loss, x)[0])
    assert not step.natural_gradient.requires_grad
    assert step.noisy_gradient.requires_grad
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ({"method.name": "aaer"}, 1),
        ({"method.name": "grad_align"}, 2),
        ({"method.name": "trades_der", "attack.steps": 2}, 0),
        ({"method.name": "mart_der", "attack.steps": 2, "method.regularizer.samples": "abnormal"}, 1),
        # Perturbed weights have seen nothing of the attack, whatever its mode.
        ({"method.name": "aaer", "method.weight_perturbation": "awp"}, 0),
    ],
)
def test_what_is_seen_again_after_an_attack_in_eval_mode_is_in_the_cost(values, more, experiment, splits):
    cost = {}
    for mode in ("train", "eval"):
        settings = experiment(values | {"attack.batch_norm": mode})
        _, step = step_of(settings, splits)
        with Passes((8, 4, 3, 3)) as counted:
            step()
        cost[mode] = counted.passes
        assert counted.passes == settings.training_passes
    assert cost["eval"] - cost["train"] == more


# Other packages' entries


def test_every_slot_takes_the_function_and_the_parameters_of_its_row(experiment, splits, monkeypatch):
    called = []

    def shaken(model, loss, *, strength, mean_over_ranks):
        called.append(strength)
        return {}

    def tempered(natural_logits, adversarial_logits, labels, *, tau):
        called.append(tau)
        return ce_adv(natural_logits, adversarial_logits / tau, labels)

    module = types.ModuleType("brought_along")
    module.shaken, module.tempered = shaken, tempered
    monkeypatch.setitem(sys.modules, "brought_along", module)
    entry = catalog.Entry("brought_along:shaken", "", "", parameters={"strength": catalog.Parameter(0.5, "")})
    monkeypatch.setitem(catalog.WEIGHT_PERTURBATION, "shaken", entry)
    outer = catalog.Outer("brought_along:tempered", "", "", parameters={"tau": catalog.Parameter(1.0, "", above=0.0)})
    monkeypatch.setitem(catalog.OUTER, "tempered", outer)
    chosen = {"method.outer.name": "tempered", "method.outer.tau": 2.0, "method.weight_perturbation": "shaken"}
    _, step = step_of(experiment(chosen), splits)
    step()
    assert called == [0.5, 2.0]
    assert build_method(experiment(chosen)).perturbs(0.0)  # its row has no start


@pytest.mark.parametrize("both", [False, True])
def test_what_an_outer_loss_needs_may_depend_on_its_parameters(both, experiment, splits, monkeypatch):
    def halved(natural_logits, adversarial_logits, labels, *, both):
        assert (natural_logits is not None) is both
        return ce_adv(natural_logits, adversarial_logits, labels)

    module = types.ModuleType("brought_along")
    module.halved = halved
    monkeypatch.setitem(sys.modules, "brought_along", module)
    parameters, needs = {"both": catalog.Parameter(False, "")}, {"natural_logits": {"both": True}}
    outer = catalog.Outer("brought_along:halved", "", "", parameters=parameters, needs_if=needs)
    monkeypatch.setitem(catalog.OUTER, "halved", outer)
    settings = experiment({"method.outer": {"name": "halved", "both": both}})
    plain = experiment({"method.name": "fgsm"}).training_passes
    assert settings.training_passes == plain + 3 * both
    step_of(settings, splits)[1]()
