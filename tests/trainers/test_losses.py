"""Outer losses, weights and DER against NumPy float64 written out here, their gradients and their limit cases."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers import catalog
from trainers.methods import objective
from trainers.methods.outer import ce_adv, ce_adv_kl, ce_nat_kl
from trainers.methods.regularizers import StepTensors, abnormal, der
from trainers.methods.weighting import energy_weight
from trainers.problems import InvalidInput

B, K = 9, 10
ROWS = np.arange(B)
SLOTS = {**catalog.OUTER, **catalog.WEIGHTING, **catalog.REGULARIZER}
KEYWORD_TABLES = {**SLOTS, **catalog.SCHEDULES, **catalog.MODELS}


@pytest.fixture
def step():
    """Random float64 logits with both normal and abnormal examples in the batch."""
    source = torch.Generator().manual_seed(5)
    natural, adversarial, start = 3 * torch.randn(3, B, K, generator=source, dtype=torch.float64)
    labels = torch.randint(K, (B,), generator=source)
    assert 0 < abnormal(start, adversarial, labels).sum() < B
    return StepTensors(natural, adversarial, start, labels)


def numpy_log_softmax(z):
    z = z.detach().double().numpy()
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def numpy_ce(z, labels):
    return -numpy_log_softmax(z)[ROWS, labels.numpy()]


def numpy_kl(z, z_adv):
    log_p, log_q = numpy_log_softmax(z), numpy_log_softmax(z_adv)
    return (np.exp(log_p) * (log_p - log_q)).sum(1)


def numpy_weight(z):
    energy = -np.log(np.exp(z.detach().numpy()).sum(1))
    return 1 / np.log(1 + np.exp(np.abs(energy)))


def numpy_squared_norm(step):
    z, z_adv, y = step.natural_logits.numpy(), step.adversarial_logits.numpy(), step.labels.numpy()
    marginal = np.log(np.exp(z_adv).sum(1)) - np.log(np.exp(z).sum(1))
    joint = z_adv[ROWS, y] - z[ROWS, y]
    return marginal**2 + joint**2


def numpy_abnormal(before, step):
    return numpy_ce(before, step.labels) > numpy_ce(step.adversarial_logits, step.labels)


def close(ours, numpys):
    np.testing.assert_allclose(ours.detach().numpy(), numpys, rtol=1e-11, atol=1e-12)


def same_as_natural(step):
    return StepTensors(step.natural_logits, step.natural_logits, step.start_logits, step.labels)


# Values


def test_outer_losses_are_those_of_numpy(step):
    z, z_adv, y = step.natural_logits, step.adversarial_logits, step.labels
    close(ce_adv(None, z_adv, y), numpy_ce(z_adv, y))
    close(ce_nat_kl(z, z_adv, y, beta=6.0), numpy_ce(z, y) + 6 * numpy_kl(z, z_adv))
    close(ce_adv_kl(z, z_adv, y, beta=7.0), numpy_ce(z_adv, y) + 7 * numpy_kl(z, z_adv))


def test_kl_is_not_truncated_at_extreme_logits():
    z, z_adv = torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]])
    assert ce_nat_kl(z, z_adv, torch.tensor([1]), beta=1.0).item() == pytest.approx(200)


@pytest.mark.parametrize(
    ("energy", "weight"), [(0, 1.4427), (1, 0.7615), (2, 0.4702), (5, 0.1997), (10, 0.1), (20, 0.05), (200, 0.005)]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_energy_weight_at_known_energies(energy, weight, sign):
    logits = torch.full((1, K), -sign * energy - np.log(K))
    assert energy_weight(logits, logits, torch.tensor([0])).item() == pytest.approx(weight, abs=5e-5)


@pytest.mark.parametrize(("classes", "weight"), [(10, 0.4170), (100, 0.2167), (200, 0.1886)])
def test_energy_weight_of_an_untrained_net(classes, weight):
    logits = torch.zeros(1, classes)
    assert energy_weight(logits, logits, torch.tensor([0])).item() == pytest.approx(weight, abs=5e-5)


def test_energy_weight_is_that_of_numpy_and_ignores_the_attack(step):
    close(energy_weight(step.natural_logits, step.adversarial_logits, step.labels), numpy_weight(step.natural_logits))


def test_weighted_objectives_multiply_both_terms_and_divide_by_the_batch(step):
    z, z_adv, y = step.natural_logits, step.adversarial_logits, step.labels
    w = numpy_weight(z)
    close(objective("weat_nat")(z, z_adv, y), (w * (numpy_ce(z, y) + 6 * numpy_kl(z, z_adv))).mean())
    close(objective("weat_adv")(z, z_adv, y), (w * (numpy_ce(z_adv, y) + 7 * numpy_kl(z, z_adv))).mean())


def test_abnormal_examples_are_those_the_attack_made_strictly_easier(step):
    flags = abnormal(step.start_logits, step.adversarial_logits, step.labels)
    assert flags.tolist() == numpy_abnormal(step.start_logits, step).tolist()
    assert not abnormal(step.start_logits, step.start_logits, step.labels).any()


@pytest.mark.parametrize("reference", ["start", "natural"])
@pytest.mark.parametrize("divide_by", ["batch", "samples"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_der_on_abnormal_examples_is_that_of_numpy(step, reference, divide_by, gamma):
    chosen = numpy_abnormal(step.start_logits if reference == "start" else step.natural_logits, step)
    hinge = np.maximum(numpy_squared_norm(step) - gamma, 0) * chosen
    expected = 3 * hinge.sum() / (B if divide_by == "batch" else chosen.sum())
    close(der(step, beta=3.0, gamma=gamma, reference=reference, divide_by=divide_by), expected)


def test_der_on_all_samples_is_that_of_numpy(step):
    expected = 0.25 * np.maximum(numpy_squared_norm(step) - 0.1, 0).mean()
    close(der(step, beta=0.25, gamma=0.1, samples="all"), expected)


# Gradients


def test_no_gradient_flows_through_the_weights(step):
    z, z_adv, y = step.natural_logits.requires_grad_(), step.adversarial_logits, step.labels
    (ours,) = torch.autograd.grad(objective("weat_nat")(z, z_adv, y), z)
    constant = torch.from_numpy(numpy_weight(z))
    (expected,) = torch.autograd.grad((constant * ce_nat_kl(z, z_adv, y, beta=6.0)).mean(), z)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("loss", [ce_nat_kl, ce_adv_kl])
def test_the_natural_side_of_the_kl_keeps_its_gradient(loss, step):
    z, z_adv, y = step.natural_logits.requires_grad_(), step.adversarial_logits, step.labels
    (with_kl,) = torch.autograd.grad(loss(z, z_adv, y, beta=1.0).sum(), z, retain_graph=True)
    (without,) = torch.autograd.grad(loss(z, z_adv, y, beta=0.0).sum(), z)
    p, gap = z.softmax(1), z.log_softmax(1) - z_adv.log_softmax(1)
    kl = (p * gap).sum(1, keepdim=True)
    torch.testing.assert_close(with_kl - without, p * (gap - kl))


@pytest.mark.parametrize("detach_natural", [False, True])
def test_der_gradient_in_closed_form_with_the_hinge_active(step, detach_natural):
    z, z_adv, y = step.natural_logits.requires_grad_(), step.adversarial_logits.requires_grad_(), step.labels
    penalty = der(step, beta=float(B), gamma=0.0, samples="all", detach_natural=detach_natural)
    at_natural, at_adversarial = torch.autograd.grad(penalty, (z, z_adv), allow_unused=True)
    one_hot = F.one_hot(y, K).double()
    marginal = (z_adv.logsumexp(1) - z.logsumexp(1))[:, None]
    joint = ((z_adv - z) * one_hot).sum(1, keepdim=True)
    torch.testing.assert_close(at_adversarial, 2 * (marginal * z_adv.softmax(1) + joint * one_hot))
    if detach_natural:
        assert at_natural is None
    else:
        torch.testing.assert_close(at_natural, -2 * (marginal * z.softmax(1) + joint * one_hot))


def test_der_has_neither_value_nor_gradient_below_gamma(step):
    z_adv = step.adversarial_logits.requires_grad_()
    norms = numpy_squared_norm(StepTensors(step.natural_logits, z_adv.detach(), None, step.labels))
    gamma = float(np.median(norms))
    (gradient,) = torch.autograd.grad(der(step, beta=1.0, gamma=gamma, samples="all"), z_adv)
    assert (gradient.abs().sum(1) > 0).tolist() == (norms > gamma).tolist()
    assert der(step, beta=1.0, gamma=float(norms.max()) + 1e-9, samples="all") == 0


def test_der_ignores_normal_examples(step):
    z_adv = step.adversarial_logits.requires_grad_()
    (gradient,) = torch.autograd.grad(der(step, beta=1.0, gamma=0.0), z_adv)
    chosen = numpy_abnormal(step.start_logits, step)
    assert (gradient.abs().sum(1) > 0).tolist() == chosen.tolist()


def test_der_does_not_change_when_one_constant_is_added_everywhere(step):
    shifted = StepTensors(step.natural_logits + 4, step.adversarial_logits + 4, step.start_logits + 4, step.labels)
    torch.testing.assert_close(der(shifted, beta=1.0, gamma=0.1), der(step, beta=1.0, gamma=0.1))
    one_sided = StepTensors(step.natural_logits, step.adversarial_logits + 4, step.start_logits + 4, step.labels)
    assert der(one_sided, beta=1.0, gamma=0.1) != der(step, beta=1.0, gamma=0.1)


# Limit cases


@pytest.mark.parametrize(("name", "side"), [("weat_nat", 0), ("weat_adv", 1)])
def test_without_beta_and_weights_the_kl_methods_are_plain_cross_entropy(name, side, step):
    z, z_adv, y = step.natural_logits, step.adversarial_logits, step.labels
    loss = objective(name, beta=0, weighting=None)(z, z_adv, y)
    torch.testing.assert_close(loss, F.cross_entropy((z, z_adv)[side], y))


def test_weat_nat_without_weights_is_trades(step):
    logits = step.natural_logits, step.adversarial_logits, step.labels
    assert objective("weat_nat", weighting=None)(*logits) == objective("trades")(*logits)


def test_an_attack_that_does_nothing_costs_neither_kl_nor_der(step):
    still = same_as_natural(step)
    z, y = step.natural_logits, step.labels
    close(ce_nat_kl(z, z, y, beta=1e6), numpy_ce(z, y))
    assert der(still, beta=100.0, gamma=0.0) == 0
    assert der(still, beta=100.0, gamma=0.0, samples="all") == 0


@pytest.mark.parametrize("divide_by", ["batch", "samples"])
def test_without_abnormal_examples_the_loss_is_exactly_the_base_loss(divide_by, step):
    z, z_adv, y = step.natural_logits, step.adversarial_logits, step.labels
    regularized = objective("fgsm_rs_der", regularizer={"divide_by": divide_by})
    assert regularized(z, z_adv, y, start_logits=z_adv) == objective("fgsm_rs")(None, z_adv, y)
    assert regularized(z, z_adv, y, start_logits=step.start_logits) > objective("fgsm_rs")(None, z_adv, y)


def test_a_late_regularizer_does_nothing_and_needs_nothing_before_its_start(step):
    z, z_adv, y = step.natural_logits, step.adversarial_logits, step.labels
    late = objective("sat_der", regularizer={"start": 0.5})
    assert late(None, z_adv, y, progress=0.49) == objective("sat")(None, z_adv, y)
    assert not late.needs_natural(0.49)
    assert late.needs_natural(0.5)
    assert late(z, z_adv, y, progress=0.5) > objective("sat")(None, z_adv, y)


def test_what_a_slot_needs_and_does_not_get_is_an_error_that_names_it(step):
    z, z_adv, y = step.natural_logits, step.adversarial_logits, step.labels
    with pytest.raises(ValueError, match="natural_logits"):
        objective("trades")(None, z_adv, y)
    with pytest.raises(ValueError, match="start_logits"):
        objective("fgsm_der")(z, z_adv, y)


def test_an_objective_that_does_not_exist_is_named():
    with pytest.raises(InvalidInput, match=r"method\.name.*Did you mean trades"):
        objective("tradez")
    with pytest.raises(InvalidInput, match=r"method\.regularizer\.gama.*Did you mean gamma"):
        objective("fgsm_der", regularizer={"gama": 1})


# Conformance: every row of the catalog


@pytest.mark.parametrize("name", KEYWORD_TABLES)
def test_keyword_only_parameters_of_the_function_are_those_of_the_row(name):
    row = KEYWORD_TABLES[name]
    signature = inspect.signature(row.load()).parameters.values()
    assert {p.name for p in signature if p.kind is p.KEYWORD_ONLY} == set(row.parameters)


@pytest.mark.parametrize("row", [*SLOTS.values(), *catalog.INNER.values()], ids=lambda row: row.function)
def test_docstring_cites_the_source_of_the_row(row):
    cited = re.findall(r"arXiv (\d{4}\.\d{4,5})", row.load().__doc__)
    assert set(cited) & set(re.findall(r"\d{4}\.\d{4,5}", row.source))


def call(name, step):
    row = SLOTS[name]
    parameters = {key: parameter.default for key, parameter in row.parameters.items()}
    if name in catalog.REGULARIZER:
        return row.load()(step, **parameters)
    return row.load()(step.natural_logits, step.adversarial_logits, step.labels, **parameters)


@pytest.mark.parametrize("name", SLOTS)
def test_slot_functions_are_per_sample_finite_and_do_not_mix_samples(name, step):
    value = call(name, step)
    assert value.shape == (() if name in catalog.REGULARIZER else (B,))
    assert value.isfinite().all()
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    parts = (step.natural_logits, step.adversarial_logits, step.start_logits, step.labels)
    permuted = StepTensors(*(part[order] for part in parts))
    torch.testing.assert_close(call(name, permuted), value if value.ndim == 0 else value[order])


@pytest.mark.parametrize("name", SLOTS)
def test_slot_functions_agree_in_single_and_double_precision(name, step):
    single = StepTensors(
        step.natural_logits.float(), step.adversarial_logits.float(), step.start_logits.float(), step.labels
    )
    torch.testing.assert_close(call(name, single).double(), call(name, step), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_every_preset_has_a_finite_objective_that_trains_the_adversarial_logits(name, step):
    z, z_adv = step.natural_logits.requires_grad_(), step.adversarial_logits.requires_grad_()
    chosen = objective(name)
    loss = chosen(z, z_adv, step.labels, start_logits=step.start_logits)
    loss.backward()
    assert loss.isfinite()
    assert (z_adv.grad.abs().sum(1) > 0).all()
    assert (z.grad is not None) == chosen.needs_natural(1.0)


@pytest.mark.parametrize("preset", catalog.PRESETS.values(), ids=catalog.PRESETS)
def test_presets_name_rows_that_exist_and_give_beta_where_the_loss_takes_one(preset):
    assert preset.inner in catalog.INNER
    assert (preset.beta is not None) == ("beta" in catalog.OUTER[preset.outer].parameters)
    assert preset.weighting in {None, *catalog.WEIGHTING}
    assert preset.regularizer in {None, *catalog.REGULARIZER}
