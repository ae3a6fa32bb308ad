"""Recipes say how the papers train; whatever the user gives, wins."""

from __future__ import annotations

import pytest

from trainers import catalog
from trainers.config import parse
from trainers.problems import InvalidInput

# recipe, data -> what the papers' tables say of it
PUBLISHED = {
    ("weat", "cifar10"): {
        "method.name": "weat_nat", "epochs": 100, "model.name": "resnet18", "data.normalization": "none",
        "data.padding_mode": "zero", "optimizer.learning_rate": 0.1, "optimizer.momentum": 0.95,
        "optimizer.momentum_at_peak": 0.85, "optimizer.weight_decay": 5e-4, "schedule.name": "onecycle",
        "schedule.peak": 0.25, "attack.steps": 10, "attack.epsilon": 8 / 255, "attack.step_size": 2 / 255,
    },
    ("weat", "svhn"): {"data.flip": True, "data.normalization": "none"},
    ("rice", "cifar10"): {
        "method.name": "sat", "epochs": 200, "model.shortcut": "activated", "data.padding_mode": "reflect",
        "data.normalization": "standard", "optimizer.learning_rate": 0.1, "optimizer.momentum_at_peak": None,
        "schedule.milestones": [0.5, 0.75], "schedule.factor": 0.1, "attack.step_size": 2 / 255,
    },
    ("rice", "cifar100"): {"data.padding_mode": "zero"},
    ("rice", "svhn"): {
        "data.augment": False, "data.normalization": "half", "optimizer.learning_rate": 0.01,
        "attack.step_size": 1 / 255,
    },
    ("fgsm_rs", "cifar10"): {
        "method.name": "fgsm_rs", "epochs": 15, "optimizer.learning_rate": 0.2, "optimizer.momentum_at_peak": 0.8,
        "schedule.name": "triangular", "schedule.peak": 0.5, "attack.step_size": 10 / 255, "model.shortcut": "raw",
    },
    ("n_fgsm", "cifar10"): {"epochs": 30, "attack.step_size": 8 / 255, "method.inner.noise_scale": 2.0},
    ("n_fgsm", "svhn"): {
        "data.flip": False, "optimizer.learning_rate": 0.05, "schedule.peak": 0.4, "attack.warmup_epochs": 5,
        "epochs": 30,
    },
    ("aaer", "svhn"): {"epochs": 15, "data.flip": True},
    ("aaer", "tiny_imagenet"): {"data.padding": 8, "model.shortcut": "activated"},
    ("grad_align", "cifar10"): {
        "optimizer.learning_rate": 0.3, "optimizer.momentum_at_peak": None, "schedule.peak": 0.4,
        "model.final_norm": False, "method.regularizer.strength": 0.2,
    },
    ("grad_align", "svhn"): {"epochs": 15, "method.regularizer.strength": 2.5, "optimizer.learning_rate": 0.05},
    ("trades", "cifar10"): {
        "epochs": 76, "model.name": "wide_resnet34_10", "optimizer.weight_decay": 2e-4, "method.beta": 6,
    },
    ("awp", "svhn"): {"method.weight_perturbation.start": 5 / 200, "attack.step_size": 1 / 255},
    ("trades_awp", "cifar10"): {
        "method.weight_perturbation.gamma": 0.005, "data.padding_mode": "zero", "model.name": "wide_resnet34_10",
        "data.normalization": "none", "epochs": 200,
    },
    ("mail", "svhn"): {"schedule.milestones": [75 / 120, 90 / 120, 100 / 120]},
    ("mart", "cifar10"): {
        "schedule.milestones": [74 / 120, 89 / 120, 99 / 120],
        "method.name": "mart", "method.beta": 5, "epochs": 120, "optimizer.learning_rate": 0.01,
        "optimizer.weight_decay": 3.5e-3,
    },
    ("mail", "cifar10"): {"method.name": "mail_at", "method.weighting.slope": 10, "method.weighting.bias": -0.5},
    ("awp", "cifar10"): {"method.weight_perturbation.gamma": 0.01, "epochs": 200, "data.padding_mode": "reflect"},
}  # fmt: skip


# What N-FGSM's code has: (data, model, levels of ε) -> levels of the step, and the half-width of the noise in ε
N_FGSM = {
    ("svhn", "wide_resnet28_10", 10): (8, 2),
    ("svhn", "wide_resnet28_10", 12): (8, 2),
    ("svhn", "wide_resnet28_10", 8): (8, 2),
    ("svhn", "wide_resnet28_10", 6): (6, 2),
    ("svhn", "preact_resnet18", 12): (12, 3),
    ("cifar10", "wide_resnet28_10", 12): (12, 2),
    ("cifar10", "wide_resnet28_10", 16): (16, 4),
}


def at(experiment, path):
    value = experiment.to_dict()
    for part in path.split("."):
        value = value[part]
    return value


def test_every_recipe_is_checked_here():
    assert {recipe for recipe, _ in PUBLISHED} == set(catalog.RECIPES)


@pytest.mark.parametrize(("recipe", "data"), PUBLISHED)
def test_a_recipe_trains_as_the_paper_does(recipe, data):
    experiment = parse({"recipe": recipe, "data": data})
    for path, expected in PUBLISHED[recipe, data].items():
        value = at(experiment, path)
        value = eval_fraction(value) if isinstance(value, str) and "/" in value else value
        assert value == (pytest.approx(expected) if isinstance(expected, float) else expected), path


def eval_fraction(text):
    top, bottom = text.split("/")
    return int(top) / int(bottom)


@pytest.mark.parametrize("data", catalog.DATASETS)
@pytest.mark.parametrize("recipe", catalog.RECIPES)
def test_every_recipe_is_valid_on_every_data_set_and_survives_being_written(recipe, data):
    experiment = parse({"recipe": recipe, "data": data})
    assert parse(experiment.to_dict()) == experiment


def test_a_row_of_the_papers_table_is_three_lines():
    experiment = parse({"recipe": "weat", "data": "cifar100", "method": "weat_adv"})
    assert (experiment.method.name, experiment.method.beta) == ("weat_adv", 7)
    assert (experiment.epochs, experiment.model.name, experiment.data.name) == (100, "resnet18", "cifar100")


def test_what_is_given_wins_over_the_recipe():
    given = {"epochs": 7, "schedule": {"peak": 0.5}, "optimizer": {"learning_rate": 0.05}, "data": {"name": "cifar10"}}
    experiment = parse({"recipe": "weat", **given})
    assert (experiment.epochs, experiment.schedule.parameters["peak"]) == (7, 0.5)
    assert (experiment.optimizer.learning_rate, experiment.optimizer.momentum) == (0.05, 0.95)


def test_another_schedule_or_model_brings_none_of_the_recipes_parameters():
    experiment = parse({"recipe": "fgsm_rs", "schedule": "piecewise", "model": "small"})
    assert "peak" not in experiment.schedule.parameters
    assert "shortcut" not in experiment.model.parameters
    on_tiny_imagenet = parse({"recipe": "aaer", "data": "tiny_imagenet", "model": "resnet18"})
    assert "shortcut" not in on_tiny_imagenet.model.parameters


def test_what_belongs_to_the_recipes_own_method_and_schedule_stays_with_them():
    single = parse({"recipe": "rice", "data": "svhn", "method": "fgsm_rs"})
    assert single.attack.step_size == pytest.approx(1.25 * 8 / 255)
    for recipe in ("fgsm_rs", "weat"):
        assert parse({"recipe": recipe, "schedule": "piecewise"}).optimizer.momentum_at_peak is None
    # With DER beside it a method is the recipe's own: nothing but the regularizer tells the two runs apart.
    for recipe in ("rice", "awp", "weat", "trades", "mart"):
        plain = parse({"recipe": recipe, "data": "svhn"})
        name = f"{plain.method.name}_der"
        beside = parse({"recipe": recipe, "data": "svhn", "method": name})
        assert beside.method.regularizer is not None
        assert beside.attack == plain.attack
        assert beside.method.weight_perturbation == plain.method.weight_perturbation
    assert parse({"recipe": "awp", "data": "svhn", "method": "trades_awp"}).method.weight_perturbation.parameters == {
        "gamma": 0.005,
        "start": 0.05,
    }


@pytest.mark.parametrize(
    ("raw", "path", "value"),
    [
        ({"recipe": "mart", "model": "wide_resnet34_10"}, "method.beta", 6),
        ({"method": "mart_der", "model": "wide_resnet28_10"}, "method.beta", 6),
        ({"recipe": "n_fgsm", "data": "svhn", "attack": {"epsilon": "12/255"}}, "method.inner.noise_scale", 3),
        (
            {"recipe": "n_fgsm", "data": "cifar10", "model": "wide_resnet28_10", "attack": {"epsilon": "16/255"}},
            "method.inner.noise_scale",
            4,
        ),
        ({"method": {"name": "fgsm", "inner": "pgd"}}, "attack.steps", 10),
        ({"method": {"name": "sat", "inner": "fgsm"}}, "attack.steps", 1),
    ],
)
def test_published_settings_follow_the_network_the_data_and_epsilon(raw, path, value):
    assert at(parse(raw), path) == value


def test_the_digest_is_that_of_the_same_values_written_out():
    experiment = parse({"recipe": "rice"})
    written_out = {key: value for key, value in experiment.to_dict().items() if key != "recipe"}
    assert parse(written_out).digest() == experiment.digest()


def test_a_recipe_that_does_not_exist_is_named():
    with pytest.raises(InvalidInput, match="Did you mean rice"):
        parse({"recipe": "rise"})


@pytest.mark.parametrize("setting", N_FGSM)
def test_n_fgsm_has_the_step_and_the_noise_of_its_code(setting):
    data, model, levels = setting
    raw = {"recipe": "n_fgsm", "data": data, "model": {"name": model}, "attack": {"epsilon": f"{levels}/255"}}
    experiment = parse(raw)
    step, noise = N_FGSM[setting]
    assert float(experiment.attack.step_size) == pytest.approx(step / 255)
    assert experiment.method.inner.parameters["noise_scale"] == noise
    given = parse(raw | {"attack": {"epsilon": f"{levels}/255", "step_size": 0.01}})
    assert float(given.attack.step_size) == 0.01
