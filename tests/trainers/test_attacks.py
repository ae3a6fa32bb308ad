"""What every attack keeps to, and what it does to a small net that is accurate and not robust."""

from __future__ import annotations

import contextlib
import copy
import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.counting import Kernels
from tests.trainers import formulas
from trainers import answers, catalog
from trainers.attacks.attacker import monitor_attack, training_attack
from trainers.attacks.linf import ascend, batch_norm_mode, bounds, uniform_start
from trainers.energy import delta_energies
from trainers.loop import fit
from trainers.randomness import Noise, derive_seed, generator

EPSILON = 0.1
ALL = sorted(catalog.INNER)
REACH = {"n_fgsm": 3.0}  # in units of epsilon: noise of 2 ε and a step of ε, unprojected
MULTI_STEP = [name for name in ALL if not catalog.INNER[name].single_step]


def craft(name, model, images, labels, *, epsilon=EPSILON, steps=10, batch_norm="eval", seed=0, **parameters):
    row = catalog.INNER[name]
    return row.load()(
        model,
        images,
        labels,
        epsilon=epsilon,
        step_size=row.relative_step_size * epsilon,
        steps=1 if row.single_step else steps,
        batch_norm=batch_norm,
        noise=Noise(generator("cpu", seed, "attack")),
        **parameters,
    )


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("epsilon", [EPSILON, 1e-4, 0.7])
def test_stays_in_the_epsilon_ball_and_in_the_box(name, batch_norm, epsilon, natural_net, digits):
    images, labels = digits[0][:128], digits[1][:128]
    model = copy.deepcopy(natural_net).train()
    adversarial = craft(name, model, images, labels, epsilon=epsilon, batch_norm=batch_norm).images
    assert (adversarial - images).abs().max() <= REACH.get(name, 1) * epsilon + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize("name", ALL)
def test_raises_the_loss_and_lowers_the_true_logit_on_average(name, natural_net, digits):
    images, labels = digits
    natural, attacked = natural_net(images), natural_net(craft(name, natural_net, images, labels).images)
    assert F.cross_entropy(attacked, labels) > F.cross_entropy(natural, labels) + 0.1
    assert delta_energies(natural, attacked, labels)[1].mean() < 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("training", [False, True])
def test_leaves_weights_gradients_and_every_flag_and_in_eval_mode_the_statistics(
    name, batch_norm, training, natural_net, digits
):
    model = copy.deepcopy(natural_net).train(training)
    batch_norms(model)[0].train(not training)
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    craft(name, model, digits[0][:32], digits[1][:32], batch_norm=batch_norm)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
    statistics = {key for key, _ in model.named_buffers()}
    assert moved <= (statistics if batch_norm == "train" else set())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize("name", ALL)
def test_an_epsilon_of_zero_returns_the_image(name, natural_net, digits):
    images, labels = digits[0][:32], digits[1][:32]
    # The Gaussian start of the KL attack is no part of the ball; the projection takes it back.
    assert torch.equal(craft(name, natural_net, images, labels, epsilon=0.0).images, images)


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_example_and_the_result_is_detached(name, natural_net, digits):
    images, labels = digits[0][:32], digits[1][:32]
    first, second = (craft(name, natural_net, images, labels, seed=4) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert not any(part.requires_grad for part in (first.images, first.start_images, first.start_logits))
    other = craft(name, natural_net, images, labels, seed=5)
    assert torch.equal(other.start_images, first.start_images) == (name == "fgsm")


@pytest.mark.parametrize("name", ALL)
def test_start_logits_are_the_models_answer_to_the_start(name, natural_net, digits):
    crafted = craft(name, natural_net, digits[0][:32], digits[1][:32])
    torch.testing.assert_close(crafted.start_logits, natural_net(crafted.start_images).detach())


def test_kl_has_no_gradient_at_the_image_itself_and_moves_only_because_of_its_noise(natural_net, digits):
    images, labels = digits[0][:32], digits[1][:32]
    model = copy.deepcopy(natural_net).double()
    x = images.double().requires_grad_()
    natural = model(x.detach()).log_softmax(1).detach()
    divergence = F.kl_div(model(x).log_softmax(1), natural, log_target=True, reduction="sum")
    assert torch.autograd.grad(divergence, x)[0].abs().max() < 1e-8
    moved = (craft("pgd_kl", natural_net, images, labels).images - images).abs()
    assert moved.amax(dim=(1, 2, 3)).min() > 0.9 * EPSILON


def test_kl_attack_fools_no_more_than_the_cross_entropy_attack(natural_net, digits):
    images, labels = digits
    accuracy = {
        name: (natural_net(craft(name, natural_net, images, labels).images).argmax(1) == labels).float().mean()
        for name in ("pgd", "pgd_kl")
    }
    assert accuracy["pgd"] <= accuracy["pgd_kl"]


def test_delta_energy_of_a_cross_entropy_attack_rises_with_epsilon(natural_net, digits):
    images, labels = digits
    natural = natural_net(images)
    means = []
    for epsilon in (0.1, 0.3, 1.0):
        attacked = natural_net(craft("pgd", natural_net, images, labels, epsilon=epsilon).images)
        means.append(delta_energies(natural, attacked, labels)[0].mean().item())
    assert means == sorted(means)
    assert means[-1] > means[0] + 1


def test_a_cross_entropy_attack_lowers_the_energy_more_than_a_targeted_one(natural_net, digits):
    images, labels = digits
    natural = natural_net(images)
    mean = {
        name: delta_energies(natural, natural_net(craft(name, natural_net, images, labels, epsilon=0.3).images), labels)
        for name in ("pgd", "pgd_targeted")
    }
    assert mean["pgd"][0].mean() > mean["pgd_targeted"][0].mean()


def test_on_a_net_trained_on_pgd_examples_the_attack_raises_the_energy(experiment, splits, alone, tmp_path):
    """ΔE(x) of adversarial training is negative on its own training attack (arXiv 2407.06315, figure 3)."""
    settings = experiment({"method.name": "sat", "attack.steps": 3, "attack.epsilon": 0.1, "model.width": 8})
    last = list(fit(settings, tmp_path, ranks=alone, splits=splits))[-1]
    assert last.metrics["probe/delta_energy/mean"] < 0


@pytest.mark.parametrize("target", ["random", "least_likely"])
def test_a_targeted_attack_raises_a_wrong_class_of_its_choice(target, natural_net, digits):
    images, labels = digits
    crafted = craft("pgd_targeted", natural_net, images, labels, epsilon=0.5, steps=20, target=target)
    attacked = natural_net(crafted.images)
    wrong = attacked.scatter(1, labels[:, None], -torch.inf).argmax(1)
    least = crafted.start_logits.scatter(1, labels[:, None], torch.inf).argmin(1)
    share = (wrong == least).float().mean()
    assert share > 0.5 if target == "least_likely" else share < 0.5
    assert torch.bincount(wrong, minlength=10).min() > 0


def targeted(images, labels, **parameters):
    """(targets, logits at the start) where the pixels [B, K, 1, 1] are the logits: that of the target alone rises."""
    crafted = craft("pgd_targeted", nn.Flatten(), images, labels, **parameters)
    return crafted.start_gradient.flatten(1).argmax(1), crafted.start_logits


def test_random_targets_are_uniform_over_the_wrong_classes():
    labels = torch.arange(4).repeat(1000)
    targets, _ = targeted(torch.full((4000, 4, 1, 1), 0.5), labels)
    assert (targets != labels).all()
    counts = torch.stack([torch.bincount(targets[labels == label], minlength=4) for label in range(4)])
    assert (counts[~torch.eye(4, dtype=torch.bool)] - 333).abs().max() < 60


def test_the_least_likely_target_is_a_wrong_class_also_where_the_true_one_is_less_likely():
    labels = torch.arange(4).repeat(50)
    targets, logits = targeted(torch.full((200, 4, 1, 1), 0.5), labels, target="least_likely")
    assert (logits.argmin(1) == labels).any()
    order = logits.argsort(1)
    assert torch.equal(targets, torch.where(order[:, 0] == labels, order[:, 1], order[:, 0]))


def test_the_margin_attack_stops_once_the_margin_is_below_minus_kappa():
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, labels = torch.rand(8, 3, 2, 2, generator=source), torch.zeros(8, dtype=torch.long)
    model[1].bias.data = torch.tensor([-100.0, 0.0, 0.0])
    still = craft("pgd_margin", model, images, labels, kappa=1.0)
    assert torch.equal(still.images, still.start_images)
    moved = craft("pgd_margin", model, images, labels, kappa=200.0)
    assert not torch.equal(moved.images, moved.start_images)


def test_noisy_fgsm_leaves_the_ball_and_takes_its_step_from_the_noise():
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images, labels = 0.4 + 0.2 * torch.rand(5, 3, 2, 2, generator=source), torch.tensor([0, 1, 1, 0, 1])
    uphill = (model[1].weight.detach()[1 - labels] - model[1].weight.detach()[labels]).sign().view_as(images)
    crafted = craft("n_fgsm", model, images, labels, noise_scale=2.0)
    torch.testing.assert_close(crafted.images, crafted.start_images + EPSILON * uphill)
    reach = (crafted.images - images).abs().max()
    assert EPSILON < reach <= 3 * EPSILON
    assert torch.equal(craft("n_fgsm", model, images, labels, noise_scale=0.0).start_images, images)


@pytest.mark.parametrize("name", ALL)
def test_the_start_gradient_points_where_the_first_step_goes(name, natural_net, digits):
    images, labels = digits[0][:32], digits[1][:32]
    one = craft(name, natural_net, images, labels, steps=1)
    inside = (one.start_images >= 0) & (one.start_images <= 1)  # the Gaussian start is clamped with the step
    moved = ((one.images - one.start_images) * one.start_gradient)[inside]
    assert (moved >= 0).all()
    assert (moved > 0).any()


@pytest.mark.parametrize("name", ["fgsm", "fgsm_rs", "n_fgsm", "pgd", "pgd_kl", "pgd_margin"])
def test_the_start_gradient_is_that_of_the_attacks_formula(name, natural_net, digits):
    images, labels = digits[0][: formulas.B], digits[1][: formulas.B]
    # κ lets the images with the smaller half of the margins go, but for the largest of these.
    margins = answers.margin(craft("pgd_margin", natural_net, images, labels).start_logits, labels)
    kappa = 1e-3 - margins.median().item()
    crafted = craft(name, natural_net, images, labels, **({"kappa": kappa} if name == "pgd_margin" else {}))
    x = crafted.start_images.clone().requires_grad_()
    z = natural_net(x)
    if name == "pgd_kl":
        raised = formulas.kl(natural_net(images), z)
    elif name == "pgd_margin":
        true, others = z[formulas.ROWS, labels], z.scatter(1, labels[:, None], -torch.inf).amax(1)
        raised = torch.where(true - others + kappa > 0, others - true, 0)
        assert 0 < (raised != 0).sum() < formulas.B
    else:
        raised = formulas.ce(z, labels)
    (expected,) = torch.autograd.grad(raised.sum(), x)
    torch.testing.assert_close(crafted.start_gradient, expected, rtol=1e-4, atol=1e-6)


def test_pgd_starts_anywhere_in_the_ball_or_a_thousandth_beside_the_image(natural_net, digits):
    images, labels = digits
    for name, given in (("pgd", {"start": "gaussian"}), ("pgd_kl", {})):
        beside = craft(name, natural_net, images, labels, steps=1, **given).start_images - images
        assert beside.std().item() == pytest.approx(0.001, rel=0.02)
    anywhere = craft("pgd", natural_net, images, labels, steps=1).start_images
    assert torch.equal(anywhere, uniform_start(images, EPSILON, Noise(generator("cpu", 0, "attack"))))


def test_the_monitor_takes_ten_steps_of_a_quarter_of_epsilon_in_eval_mode(natural_net, digits):
    model, modes = copy.deepcopy(natural_net).train(), []
    batch_norms(model)[0].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    found = [
        monitor_attack(EPSILON, *steps)(model, *(part[:32] for part in digits), Noise(generator("cpu", 0, "attack")))
        for steps in ((), (1,))
    ]
    assert modes == [False] * 11
    assert (found[1].images - found[1].start_images).abs().max().item() == pytest.approx(EPSILON / 4)
    assert (found[1].start_images - digits[0][:32]).abs().max() > 0.9 * EPSILON


@pytest.mark.parametrize(
    ("mode", "instead", "training"), [("train", None, True), ("eval", None, False), ("train", "eval", False)]
)
def test_the_training_attack_has_the_settings_of_the_experiment(
    mode, instead, training, experiment, natural_net, digits
):
    settings = experiment(
        {"method": {"name": "n_fgsm", "inner": {"name": "n_fgsm", "noise_scale": 0.5}}}
        | {"attack": {"epsilon": 0.2, "batch_norm": mode}}
    )
    model, modes = copy.deepcopy(natural_net).train(), []
    batch_norms(model)[0].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    attack, noise = training_attack(settings, batch_norm=instead), Noise(generator("cpu", 0, "attack"))
    found = attack(model, digits[0][:32], digits[1][:32], noise)
    assert modes == [training]
    assert 0.09 < (found.start_images - digits[0][:32]).abs().max() <= 0.1 + 1e-6


def test_more_steps_fool_more(natural_net, digits):
    images, labels = digits
    losses = [
        F.cross_entropy(natural_net(craft("pgd", natural_net, images, labels, steps=steps).images), labels)
        for steps in (1, 10)
    ]
    assert losses[0] < losses[1]


def test_eval_mode_gives_every_module_its_own_flag_back_even_after_an_error(natural_net):
    model = copy.deepcopy(natural_net).train()
    frozen = batch_norms(model)[1].eval()
    flags = [module.training for module in model.modules()]
    inside = []
    with contextlib.suppress(InterruptedError), batch_norm_mode(model, "eval"):
        inside += [module.training for module in model.modules()]
        raise InterruptedError
    assert not any(inside)
    assert [module.training for module in model.modules()] == flags
    assert not frozen.training


@pytest.mark.parametrize("name", ALL)
def test_train_mode_updates_running_statistics_once_a_forward_and_spares_frozen_ones(name, natural_net, digits):
    model = copy.deepcopy(natural_net).train()
    moving, frozen = batch_norms(model)[0], batch_norms(model)[1].eval()
    kept, mean = copy.deepcopy(frozen.state_dict()), moving.running_mean.clone()
    updates = []
    moving.register_forward_hook(lambda module, inputs, output: updates.append(module.running_mean.clone()))
    craft(name, model, digits[0][:32], digits[1][:32], steps=4, batch_norm="train")
    row = catalog.INNER[name]
    assert len(updates) == (1 if row.single_step else 4) + row.passes
    assert not any(torch.equal(one, other) for one, other in zip([mean, *updates], updates, strict=False))
    assert all(torch.equal(kept[key], value) for key, value in frozen.state_dict().items())


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_on_a_linear_model_the_example_is_the_corner_of_the_ball(name):
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 12, generator=source)
    images = 0.3 + 0.4 * torch.rand(5, 3, 2, 2, generator=source)
    labels = torch.tensor([0, 1, 1, 0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    model[1].weight.data.copy_(weight)
    uphill = (weight[1 - labels] - weight[labels]).sign().view_as(images)
    crafted = craft(name, model, images, labels).images
    torch.testing.assert_close(crafted, images + EPSILON * uphill, rtol=0, atol=1e-7)


def test_random_start_single_step_is_start_plus_one_clipped_step():
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images, labels = torch.rand(5, 3, 2, 2, generator=source), torch.tensor([0, 1, 1, 0, 1])
    weight = model[1].weight.detach()
    uphill = (weight[1 - labels] - weight[labels]).sign().view_as(images)
    crafted = craft("fgsm_rs", model, images, labels)
    expected = (crafted.start_images + 1.25 * EPSILON * uphill - images).clamp(-EPSILON, EPSILON) + images
    torch.testing.assert_close(crafted.images, expected.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [EPSILON, 0.0, math.inf])
def test_bounds_are_those_of_the_ball_and_of_the_box_in_turn(epsilon):
    images, far = torch.rand(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    far = 4 * far - 2
    in_turn = torch.minimum(torch.maximum(far, images - epsilon), images + epsilon).clamp(0, 1)
    projected = torch.clamp(far, *bounds(images, epsilon))
    assert torch.equal(projected, in_turn)
    assert torch.equal(torch.clamp(projected, *bounds(images, epsilon)), projected)


def test_a_step_of_an_attack_is_four_kernels_beside_loss_and_network():
    counts = []
    for steps in (2, 3):
        images = torch.rand(2, 1, 4, 4)
        with Kernels() as kernels:
            ascend(nn.Identity(), images, images, torch.sum, epsilon=0.1, step_size=0.1, steps=steps)
        counts.append(kernels.count)
    loss = 2  # the sum, and the ones that its gradient begins with
    assert counts[1] - counts[0] - loss == 4  # sign, times the step, plus the image, clamped


def test_uniform_start_fills_the_ball_and_stays_in_the_box():
    images = torch.cat([torch.zeros(1, 1, 64, 64), torch.full((1, 1, 64, 64), 0.5), torch.ones(1, 1, 64, 64)])
    moved = uniform_start(images, EPSILON, Noise(generator("cpu", 0, "attack"))) - images
    assert moved[0].min() == 0
    assert moved[2].max() == 0
    assert moved[1].abs().max() <= EPSILON
    assert moved[1].std().item() == pytest.approx(EPSILON / 3**0.5, rel=0.03)
    assert moved[1].mean().item() == pytest.approx(0, abs=0.003)


def test_an_attack_without_steps_is_refused(natural_net, digits):
    with pytest.raises(ValueError, match="at least one step"):
        ascend(natural_net, digits[0], digits[0], torch.sum, epsilon=0.1, step_size=0.1, steps=0)


def test_seed_purpose_and_epoch_have_streams_of_their_own_the_same_in_every_version():
    """A run that an older version began goes on as it would have there."""
    streams = [derive_seed(*which) for which in product((0, 1), ("attack", "order"), (0, 1))]
    assert len(set(streams)) == 8
    assert streams[0] == 8340428145931255848


def test_noise_rows_do_not_depend_on_the_number_of_ranks():
    like = torch.empty(6, 1, 4, 4)
    whole = Noise(generator("cpu", 1, "attack"), 6).uniform(like, -1, 1)
    parts = [Noise(generator("cpu", 1, "attack"), 6, first).uniform(like[:2], -1, 1) for first in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
