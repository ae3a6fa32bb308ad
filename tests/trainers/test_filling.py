"""What contradicts the catalog or itself is named; what was filled in is not held against the user."""

from __future__ import annotations

import math

import pytest

from tests.trainers.test_config import complaint
from trainers.config import parse


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("gamma", -0.1, ">= 0"),
        ("gama", 0.1, "Did you mean gamma"),
        ("beta", "strong", "not a number"),
        ("samples", "some", "abnormal"),
        ("start", 1.1, "<= 1"),
        ("detach_natural", 1, "true or false"),
        ("beta", True, "not a number"),
        ("beta", math.nan, "nan"),
    ],
)
def test_a_mistake_inside_a_slot_is_named(path, value, says):
    found = complaint({"method": {"name": "fgsm_rs_der", "regularizer": {path: value}}})
    assert says in found[f"method.regularizer.{path}"]


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ({"name": "trades", "beta": None}, "beta"),
        ({"name": "fgsm", "outer": "ce_nat_kl", "beta": None}, "beta"),
        ({"name": "fgsm_der", "regularizer": {"beta": None}}, "regularizer.beta"),
        ({"name": "fgsm_der", "regularizer": {"samples": None}}, "regularizer.samples"),
        ({"name": "fgsm_der", "regularizer": {"detach_natural": None}}, "regularizer.detach_natural"),
        ({"name": "mail_at", "weighting": {"start": None}}, "weighting.start"),
        ({"name": "sat_awp", "weight_perturbation": {"gamma": None}}, "weight_perturbation.gamma"),
        ({"name": "sat", "inner": {"start": None}}, "inner.start"),
    ],
)
def test_nothing_is_no_value_of_a_parameter(method, field):
    found = complaint({"method": method})
    assert set(found) == {f"method.{field}"}
    assert "leave it out for the default" in found[f"method.{field}"]


def test_a_method_without_beta_may_say_so():
    assert parse({"method": {"name": "sat", "beta": None}}) == parse({"method": "sat"})


@pytest.mark.parametrize(
    ("slot", "chosen", "field", "says"),
    [
        ("weighting", {"name": "margin", "applies_to": "divergence"}, "applies_to", "has no KL term"),
        ("weighting", {"name": "margin", "normalize": "x2"}, "normalize", "x3"),
        ("weighting", {"name": "energy", "slope": 2}, "slope", "unknown field of energy"),
        ("regularizer", {"name": "aaer", "gamma": 1}, "gamma", "unknown field of aaer"),
        ("regularizer", {"name": "grad_align", "strength": -1}, "strength", ">= 0"),
        ("weight_perturbation", {"name": "awp", "start": 2}, "start", "<= 1"),
        ("inner", {"name": "pgd_margin", "kappa": "much"}, "kappa", "not a number"),
        ("inner", {"name": "pgd_targeted", "target": "any"}, "target", "least_likely"),
    ],
)
def test_a_mistake_in_a_slot_that_replaces_the_presets_is_named(slot, chosen, field, says):
    assert says in complaint({"method": {"name": "sat", slot: chosen}})[f"method.{slot}.{field}"]


@pytest.mark.parametrize("schedule", ["piecewise", "constant"])
def test_momentum_can_be_cycled_only_where_there_is_a_peak(schedule):
    raw = {"schedule": schedule, "optimizer": {"momentum_at_peak": 0.8}}
    assert "has no peak" in complaint(raw)["optimizer.momentum_at_peak"]
    assert parse({"optimizer": {"momentum_at_peak": 0.8}}).optimizer.momentum_at_peak == 0.8


def test_momentum_falls_at_the_peak():
    for raw in (
        {"optimizer": {"momentum": 0.5, "momentum_at_peak": 0.8}},
        {"optimizer": {"momentum_at_peak": 0.95}},
        {"recipe": "fgsm_rs", "optimizer": {"momentum": 0.5}},
    ):
        assert "momentum falls to it" in complaint(raw)["optimizer.momentum_at_peak"]
    constant = {"recipe": "fgsm_rs", "optimizer": {"momentum": 0.5, "momentum_at_peak": None}}
    assert parse(constant).optimizer.momentum_at_peak is None


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        ({"data": {"flip": True}}, "data.flip", "True: is a part of data.augment"),
        ({"data": {"name": "svhn", "augment": False, "flip": True}}, "data.flip", "which is false"),
        ({"data": {"name": "cifar10", "augment": False, "padding_mode": "reflect"}}, "data.padding_mode", "'reflect'"),
        (
            {"synchronize_batch_norm": True, "model": {"name": "small", "norm": "group"}},
            "synchronize_batch_norm",
            "no batch norm",
        ),
        (
            {"method": {"name": "sat_der", "regularizer": {"reference": "natural"}}},
            "method.regularizer.reference",
            "'natural': changes nothing with samples: all, only with samples: abnormal",
        ),
        (
            {"method": {"name": "fgsm_der", "regularizer": {"samples": "all", "divide_by": "samples"}}},
            "method.regularizer.divide_by",
            "changes nothing with samples: all",
        ),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(raw, field, says):
    found = complaint(raw)
    assert set(found) == {field}
    assert says in found[field]


@pytest.mark.parametrize(
    "raw",
    [
        {"data": {"name": "cifar10", "augment": False}},
        {"data": {"name": "cifar10", "augment": False}, "recipe": "rice"},
        {"data": {"name": "svhn", "augment": False}, "recipe": "weat"},
        {"data": "svhn", "recipe": "awp"},
        {"data": {"augment": True, "flip": True, "padding_mode": "reflect"}},
        {"model": {"name": "small", "norm": "group"}},
        {"method": {"name": "sat_der", "regularizer": {"reference": "start", "divide_by": "batch"}}},
        {"method": {"name": "fgsm_der", "regularizer": {"reference": "natural", "divide_by": "samples"}}},
    ],
)
def test_a_value_that_was_filled_in_is_not_refused_where_it_changes_nothing(raw):
    experiment = parse(raw)
    assert parse(experiment.to_dict()) == experiment


def test_a_warm_up_ends_before_the_run():
    assert "ε is never reached" in complaint({"epochs": 3, "attack": {"warmup_epochs": 3}})["attack.warmup_epochs"]
    assert "the 30 epochs" in complaint({"attack": {"warmup_epochs": 30}})["attack.warmup_epochs"]


def test_gradient_alignment_does_not_run_in_bfloat16():
    assert "differentiates twice" in complaint({"method": "grad_align", "precision": "bfloat16"})["precision"]
    assert parse({"method": "fgsm_rs_der", "precision": "bfloat16"}).precision == "bfloat16"


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"method": {"name": "tradez", "beta": 6}, "attack": {"steps": 10}}, "method.name"),
        ({"method": {"name": "sat", "inner": "pdg"}, "attack": {"steps": 7}}, "method.inner.name"),
        ({"method": {"name": "trades", "outer": "ce_nat", "beta": 6}}, "method.outer.name"),
        ({"data": {"name": "cifar", "size": 32, "holdout": 2000, "train_samples": 20_000}}, "data.name"),
        ({"schedule": "step", "optimizer": {"momentum_at_peak": 0.8}}, "schedule.name"),
        ({"schedule": ["step"], "data": {"name": ["cifar"]}}, "data.name"),
    ],
)
def test_of_a_name_that_is_not_known_nothing_else_is_claimed(raw, field):
    found = complaint(raw)
    assert "unknown" in found.pop(field)
    assert not found.keys() - {"schedule"}


def test_a_slot_without_a_name_is_one_problem():
    assert list(complaint({"method": {"inner": None}})) == ["method.inner"]
