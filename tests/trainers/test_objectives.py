"""Every preset against its paper's formula, value and gradient, from tiny logits to energies beyond exp's range."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace

import pytest
import torch
from torch.nn import functional as F

from tests.trainers.formulas import FORMULAS, B, batch, boosted, energy_weight, lse
from trainers import catalog
from trainers.config import parse
from trainers.methods import objective
from trainers.methods.step_tensors import StepTensors
from trainers.problems import InvalidInput

SLOTS = {**catalog.OUTER, **catalog.WEIGHTING, **catalog.REGULARIZER}
KEYWORD_TABLES = {**SLOTS, **catalog.SCHEDULES, **catalog.MODELS}
COMMON = {"epsilon", "step_size", "steps", "batch_norm", "noise"}
SCALES = [0.01, 0.3, 3.0, 50.0]


def trainable(found):
    """The same batch with gradients to follow, where a training step has them."""
    natural, adversarial = (z.clone().requires_grad_() for z in (found.natural, found.adversarial))
    return replace(
        found, natural=natural, adversarial=adversarial, noisy_gradient=found.noisy_gradient.requires_grad_()
    )


def in_single_precision(found):
    floats = {f.name: getattr(found, f.name).float() for f in fields(found) if f.name != "labels"}
    return replace(found, **floats)


def evaluate(name, b):
    return objective(name, weight_perturbation=None)(
        b.natural, b.adversarial, b.labels,
        start_logits=b.start, natural_gradient=b.natural_gradient, noisy_gradient=b.noisy_gradient,
    )  # fmt: skip


def gradients(loss, b):
    found = torch.autograd.grad(loss, (b.natural, b.adversarial, b.noisy_gradient), allow_unused=True)
    return [torch.zeros(1, dtype=torch.float64) if part is None else part for part in found]


def test_every_preset_has_a_formula_here():
    assert set(FORMULAS) == set(catalog.PRESETS)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FORMULAS)
def test_loss_and_gradient_are_those_of_the_formula(name, scale):
    ours, theirs = trainable(batch(scale)), trainable(batch(scale))
    loss, expected = evaluate(name, ours), FORMULAS[name](theirs)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    for gradient, other in zip(gradients(loss, ours), gradients(expected, theirs), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FORMULAS)
def test_single_precision_agrees(name, scale):
    ours, theirs = trainable(in_single_precision(batch(scale))), trainable(batch(scale))
    loss, expected = evaluate(name, ours), FORMULAS[name](theirs)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(gradients(loss, ours), gradients(expected, theirs), strict=True):
        torch.testing.assert_close(gradient.double(), other, rtol=1e-3, atol=1e-3 * float(other.abs().max()) + 1e-7)


def test_the_largest_scale_is_beyond_the_range_of_exp():
    energies = lse(batch(SCALES[-1]).natural)
    assert energies.max() > 88.8
    assert not torch.exp(energies.float()).isfinite().all()
    assert energy_weight(batch(SCALES[-1]).natural).min() > 0


def test_the_boosted_cross_entropy_can_stand_alone():
    b = batch()
    loss = objective("sat", outer="bce_adv")(None, b.adversarial, b.labels)
    torch.testing.assert_close(loss, boosted(b.adversarial, b.labels).mean())


@pytest.mark.parametrize("name", ["mart_der", "aaer"])
def test_what_is_reported_of_a_loss_holds_no_graph(name):
    b = trainable(batch())
    terms = objective(name).terms(StepTensors(b.adversarial, b.labels, b.natural, b.start))
    assert terms.total.requires_grad
    assert not any(part is not None and part.requires_grad for part in (terms.weights, terms.regularizer))


@pytest.mark.parametrize("name", ["aaer", "grad_align", "weat_nat", "mart", "fgsm_rs_der"])
def test_what_has_no_start_acts_from_the_first_epoch_on(name):
    assert objective(name).needs(0.0) == objective(name).needs(1.0) > objective("sat").needs(1.0)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name.startswith("mail")])
def test_during_the_burn_in_the_margin_weighs_nothing(name):
    b = batch()
    plain = {"mail_at": "sat", "mail_trades": "trades"}[name.removesuffix("_der")]
    given = {"beta": 5.0} if plain == "trades" else {}
    early = objective(name)(b.natural, b.adversarial, b.labels, epoch_fraction=75 / 120)
    assert early == objective(plain, **given)(b.natural, b.adversarial, b.labels, epoch_fraction=75 / 120)
    assert objective(name)(b.natural, b.adversarial, b.labels, epoch_fraction=76 / 120) != early


# Limit cases


@pytest.mark.parametrize(("name", "side"), [("weat_nat", "natural"), ("weat_adv", "adversarial")])
def test_without_beta_and_weights_the_kl_methods_are_plain_cross_entropy(name, side):
    b = batch()
    loss = objective(name, beta=0, weighting=None)(b.natural, b.adversarial, b.labels)
    torch.testing.assert_close(loss, F.cross_entropy(getattr(b, side), b.labels))


def test_weat_nat_without_weights_is_trades():
    b = batch()
    logits = b.natural, b.adversarial, b.labels
    assert objective("weat_nat", weighting=None)(*logits) == objective("trades")(*logits)


@pytest.mark.parametrize("name", ["trades", "mart", "weat_nat", "mail_trades", "weat_adv_der", "fgsm_rs_der"])
def test_an_attack_that_does_nothing_costs_neither_kl_nor_der(name):
    z, y = batch().natural, batch().labels
    loss = objective(name)(z, z, y, start_logits=z)
    assert loss == objective(name, **({} if "fgsm" in name else {"beta": 0}), regularizer=None)(z, z, y)


@pytest.mark.parametrize("name", ["fgsm_rs_der", "aaer"])
def test_without_abnormal_examples_the_loss_is_exactly_the_base_loss(name):
    b = batch()
    base = objective("fgsm_rs")(None, b.adversarial, b.labels)
    assert objective(name)(b.natural, b.adversarial, b.labels, start_logits=b.adversarial) == base
    assert objective(name)(b.natural, b.adversarial, b.labels, start_logits=b.start) > base


def test_what_starts_late_does_nothing_and_needs_nothing_before():
    b = batch()
    late = objective("sat_der", regularizer={"start": 0.5})
    assert late(None, b.adversarial, b.labels, epoch_fraction=0.49) == objective("sat")(None, b.adversarial, b.labels)
    assert "natural_logits" not in late.needs(0.49)
    assert "natural_logits" in late.needs(0.5)
    assert late(b.natural, b.adversarial, b.labels, epoch_fraction=0.5) > objective("sat")(
        None, b.adversarial, b.labels
    )


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("trades", "natural_logits"),
        ("weat_adv", "natural_logits"),
        ("fgsm_der", "natural_logits"),
        ("aaer", "start_logits"),
        ("grad_align", "natural_gradient"),
    ],
)
def test_what_a_slot_needs_and_does_not_get_is_an_error_that_names_it(name, missing):
    with pytest.raises(ValueError, match=missing):
        objective(name)(None, batch().adversarial, batch().labels)


@pytest.mark.parametrize(
    ("applies_to", "scaled"), [("all", (2, 2)), ("divergence", (1, 2)), ("classification", (2, 1))]
)
def test_a_weighting_may_be_on_one_term_alone(applies_to, scaled):
    b = batch()
    whole = objective("trades", beta=1.0, weighting={"name": "misclassification", "applies_to": applies_to})
    factor = 1.0000001 - b.natural.softmax(1).gather(1, b.labels[:, None])[:, 0]
    classification = F.cross_entropy(b.natural, b.labels, reduction="none")
    divergence = F.kl_div(b.adversarial.log_softmax(1), b.natural.softmax(1), reduction="none").sum(1)
    weighted = [
        term * (factor if times == 2 else 1) for term, times in zip((classification, divergence), scaled, strict=True)
    ]
    torch.testing.assert_close(whole(b.natural, b.adversarial, b.labels), sum(weighted).mean())


def test_an_objective_that_does_not_exist_is_named():
    with pytest.raises(InvalidInput, match=r"method\.name.*Did you mean trades"):
        objective("tradez")
    with pytest.raises(InvalidInput, match=r"method\.regularizer\.gama.*Did you mean gamma"):
        objective("fgsm_der", regularizer={"gama": 1})


@pytest.mark.parametrize("name", ["sat_awp", "trades_awp_der"])
def test_a_loss_does_not_pass_for_that_of_a_method_which_moves_the_weights_too(name):
    with pytest.raises(InvalidInput, match=r"method\.weight_perturbation: 'awp'.*weight_perturbation=None"):
        objective(name)


# Conformance: every row of the catalog


@pytest.mark.parametrize("name", KEYWORD_TABLES)
def test_keyword_only_parameters_of_the_function_are_those_of_the_row(name):
    row = KEYWORD_TABLES[name]
    assert keywords(row) == set(row.parameters)


@pytest.mark.parametrize("row", [*KEYWORD_TABLES.values(), *catalog.INNER.values()], ids=lambda row: row.function)
def test_what_a_function_does_by_itself_is_the_default_of_its_row(row):
    own = {p.name: p.default for p in inspect.signature(row.load()).parameters.values() if p.default is not p.empty}
    assert own == {name: row.parameters[name].default for name in own}


@pytest.mark.parametrize("name", catalog.INNER)
def test_attacks_take_what_all_attacks_take_and_their_rows_parameters(name):
    assert keywords(catalog.INNER[name]) == COMMON | set(catalog.INNER[name].parameters)


def keywords(row):
    signature = inspect.signature(row.load()).parameters.values()
    return {p.name for p in signature if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize(
    "row",
    [*SLOTS.values(), *catalog.INNER.values(), *catalog.WEIGHT_PERTURBATION.values()],
    ids=lambda row: row.function,
)
def test_docstring_cites_the_source_of_the_row(row):
    papers = r"\d{4}\.\d{4,5}|ICLR \d{4}"
    assert set(re.findall(papers, row.load().__doc__)) & set(re.findall(papers, row.source))


@pytest.mark.parametrize("name", [*catalog.WEIGHTING, *catalog.REGULARIZER])
def test_slot_functions_do_not_mix_samples(name):
    row = SLOTS[name]
    parameters = {key: parameter.default for key, parameter in row.parameters.items()}
    b = batch()
    step = StepTensors(b.adversarial, b.labels, b.natural, b.start, b.natural_gradient, b.noisy_gradient)
    value = row.load()(step, **parameters)
    assert value.shape == (() if name in catalog.REGULARIZER else (B,))
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    names = [f.name for f in fields(step) if f.name != "mean_over_ranks"]
    permuted = StepTensors(**{part: getattr(step, part)[order] for part in names})
    torch.testing.assert_close(row.load()(permuted, **parameters), value if value.ndim == 0 else value[order])


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_presets_name_rows_that_exist_and_give_beta_where_the_loss_takes_one(name):
    preset, method = catalog.PRESETS[name], parse({"method": name}).method
    assert method.inner.name in catalog.INNER
    assert (preset.beta is not None) == ("beta" in catalog.OUTER[preset.outer].parameters)
    for slot, table in (("weighting", catalog.WEIGHTING), ("regularizer", catalog.REGULARIZER)):
        chosen = getattr(method, slot)
        assert chosen is None or set(chosen.parameters) == set(table[chosen.name].fields)
