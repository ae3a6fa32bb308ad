"""What may vary: conditions, corners that reach all of it, and paths that lead where an Experiment has a field."""

from __future__ import annotations

import itertools
import random

import pytest
from pydantic import ValidationError

from search_spaces.dimension import Dimension
from search_spaces.loader import header, load_study, shipped
from search_spaces.space import check_space, corners, grid_size, read_space, settings, suggest

CONDITIONAL = {
    "method.name": ["fgsm", "trades", "fgsm_rs_der"],
    "method.beta": {"low": 1, "high": 12, "log": True, "when": {"method.name": "trades"}},
    "method.regularizer.beta": {"low": 1, "high": 300, "when": {"method.name": ["fgsm_rs_der"]}},
    "method.regularizer.samples": {"choices": ["abnormal", "all"], "when": {"method.name": "fgsm_rs_der"}},
    "method.regularizer.gamma": {"low": 0, "high": 1, "step": 0.25, "when": {"method.regularizer.samples": "all"}},
}


def space(raw):
    return [Dimension.model_validate(fields) for fields in read_space(raw)]


def problems(raw, base=()):
    return {problem.field: problem.message for problem in check_space(space(raw), dict(base))}


class Dice:
    """Draws what an Optuna trial would, and remembers how it was asked."""

    def __init__(self, seed):
        self.random, self.asked = random.Random(seed), {}

    def suggest_categorical(self, name, choices):
        self.asked[name] = choices
        return self.random.choice(choices)

    def suggest_float(self, name, low, high, *, log=False, step=None):
        self.asked[name] = (low, high, log, step)
        return self.random.uniform(low, high)

    def suggest_int(self, name, low, high, *, step=1, log=False):
        self.asked[name] = (low, high, step, log)
        return self.random.randrange(low, high + 1, step)


def test_only_dimensions_whose_condition_holds_are_asked_for():
    expected = {
        "fgsm": set(),
        "trades": {"method.beta"},
        "fgsm_rs_der": {"method.regularizer.beta", "method.regularizer.samples"},
    }
    seen = set()
    for seed in range(40):
        values = suggest(space(CONDITIONAL), Dice(seed))
        name = values["method.name"]
        rest = expected[name] | (
            {"method.regularizer.gamma"} if values.get("method.regularizer.samples") == "all" else set()
        )
        assert set(values) == {"method.name"} | rest
        seen.add((name, values.get("method.regularizer.samples")))
    assert len(seen) == 4


def test_a_trial_is_asked_with_the_bounds_and_the_scale_of_the_dimension():
    dice = Dice(0)
    raw = {
        "attack.epsilon": {"low": "2/255", "high": "16/255"},
        "optimizer.learning_rate": {"low": 0.01, "high": 1, "log": True},
        "method.regularizer.gamma": {"low": 0, "high": 1, "step": 0.1},
        "attack.steps": {"low": 2, "high": 10, "integer": True, "log": True},
        "optimizer.batch_size": {"low": 32, "high": 128, "integer": True, "step": 32},
        "model.norm": ["batch", "group"],
    }
    suggest(space(raw), dice)
    assert dice.asked == {
        "attack.epsilon": (2 / 255, 16 / 255, False, None),
        "optimizer.learning_rate": (0.01, 1, True, None),
        "method.regularizer.gamma": (0, 1, False, 0.1),
        "attack.steps": (2, 10, 1, True),
        "optimizer.batch_size": (32, 128, 32, False),
        "model.norm": ("batch", "group"),
    }


def test_corners_reach_every_branch_and_every_end():
    assignments = corners(space(CONDITIONAL))
    reached = {(path, value) for values in assignments for path, value in values.items()}
    for dimension in space(CONDITIONAL):
        assert {(dimension.path, extreme) for extreme in dimension.extremes} <= reached
    for values in assignments:
        for dimension in space(CONDITIONAL):
            assert (dimension.path in values) == dimension.active(values)


def test_corners_of_an_unconditional_space_change_one_thing_at_a_time():
    raw = {f"d{index}": {"low": 0, "high": 1, "integer": True} for index in range(4)}
    assignments = corners(space(raw))
    assert len(assignments) == 5
    assert all(sum(values.values()) <= 1 for values in assignments)
    both = corners(space(raw), together=2)
    assert len(both) == 5 + 6
    assert {sum(values.values()) for values in both} == {0, 1, 2}
    assert corners([]) == [{}]


def test_no_corner_comes_twice_where_conditions_hang_on_one_another():
    raw = CONDITIONAL | {"attack.epsilon": {"low": 0.1, "high": 0.3, "when": {"method.regularizer.samples": "all"}}}
    points = corners(space(raw), together=2)
    assert all(left != right for left, right in itertools.combinations(points, 2))
    assert points[0] == {"method.name": "fgsm"}


def test_corners_reach_the_numbers_on_which_conditions_are():
    raw = {
        "attack.steps": {"low": 1, "high": 10, "integer": True},
        "attack.step_size": {"low": 0.01, "high": 3, "when": {"attack.steps": 5}},
    }
    assert {values["attack.steps"] for values in corners(space(raw))} == {1, 2, 5, 10}
    assert set(problems(raw, {"method": "sat"})) == {"space.attack.step_size"}


def test_a_sound_space_has_no_problems():
    assert problems(CONDITIONAL) == {}


@pytest.mark.parametrize(
    ("raw", "base", "field", "says"),
    [
        ({"method.beat": {"low": 1, "high": 2}}, {"method": "trades"}, "method.beat", "Did you mean beta"),
        ({"method.beta": {"low": 1, "high": 2}}, {"method": "fgsm"}, "method.beta", "no beta"),
        ({"optimiser.momentum": [0.9]}, {}, "optimiser", "Did you mean optimizer"),
        ({"attack.epsilon": {"low": 0.1, "high": 2}}, {}, "attack.epsilon", "2.0"),
        ({"attack.epsilon": {"low": 0, "high": 0.1}}, {}, "attack.epsilon", "0.0"),
        ({"method.name": ["trades", "tradez"]}, {}, "method.name", "Did you mean trades"),
        (
            {"method.regularizer.gamma": {"low": -1, "high": 1}},
            {"method": "fgsm_der"},
            "method.regularizer.gamma",
            "-1",
        ),
        ({"method.regularizer.gamma": [0.1]}, {"method": "fgsm"}, "method.regularizer", "fgsm has none"),
        ({"attack.steps": {"low": 1, "high": 4, "integer": True}}, {"method": "fgsm"}, "attack.steps", "exactly 1"),
        ({"model.width": {"low": 0, "high": 4, "integer": True}}, {}, "model.width", ">= 1"),
        ({"data.holdout": [100, 5000]}, {}, "data.holdout", "5000"),
    ],
)
def test_a_dimension_that_leaves_what_an_experiment_allows_is_named(raw, base, field, says):
    found = problems(raw, base)
    assert set(found) == {f"space.{field}"}
    assert says in found[f"space.{field}"]
    assert " (at " in found[f"space.{field}"]


def test_a_mistake_in_one_branch_only_is_found_and_the_branch_is_said():
    found = problems({"method.name": ["trades", "fgsm"], "method.beta": {"low": 1, "high": 2}})
    assert "method.name=fgsm" in found["space.method.beta"]


def test_two_values_that_are_fine_until_they_meet_are_named():
    found = problems({"data.holdout": [100, 900], "data.train_samples": [100, 1300]})
    assert "only 600 are left" in found["space.data.train_samples"]
    assert "(at data.holdout=900, data.train_samples=1300)" in found["space.data.train_samples"]


def test_a_mistake_of_the_base_experiment_is_not_blamed_on_the_space():
    assert set(problems({"method.beta": [1, 2]}, {"method": "trades", "epochs": 0})) == {"experiment.epochs"}
    assert set(problems({}, {"epochs": 0})) == {"experiment.epochs"}


@pytest.mark.parametrize("path", ["attack.steps", "model.width", "optimizer.batch_size", "epochs"])
def test_a_whole_number_needs_a_whole_dimension(path):
    bounds = {"low": 2, "high": 10}
    assert set(problems({path: bounds}, {"method": "sat"})) == {f"space.{path}"}
    assert problems({path: bounds | {"integer": True}}, {"method": "sat"}) == {}


def test_a_condition_on_what_comes_later_or_not_at_all_is_named():
    later = {"method.beta": {"low": 1, "high": 2, "when": {"method.name": "trades"}}, "method.name": ["trades"]}
    assert "before this one" in problems(later)["space.method.beta.when.method.name"]
    nowhere = {"method.beta": {"low": 1, "high": 2, "when": {"method.nmae": "trades"}}}
    assert "space.method.beta.when.method.nmae" in problems(nowhere, {"method": "trades"})


@pytest.mark.parametrize(
    ("gate", "values", "says"),
    [
        (["fgsm", "trades"], "tradez", "Did you mean trades"),
        (["fgsm", "trades"], ["trades", "sat"], "Allowed: fgsm, trades"),
        ({"low": 1, "high": 9, "step": 2, "integer": True}, 4, "1 … 9 (integer, step 2)"),
        ({"low": 1, "high": 9, "integer": True}, "4", "as a number"),
        ({"low": 1, "high": 9}, 4, "on choices or whole numbers"),
        ({"low": 1, "high": 9, "step": 1}, 4, "on choices or whole numbers"),
    ],
)
def test_a_condition_on_what_its_dimension_never_is_is_named(gate, values, says):
    path = "method.name" if isinstance(gate, list) else "epochs"
    found = problems({path: gate, "seed": {"choices": [1, 2], "when": {path: values}}})
    assert says in found[f"space.seed.when.{path}"]


def test_conditions_that_never_hold_together_are_named():
    raw = {
        "method.name": ["fgsm", "trades"],
        "method.beta": {"choices": [1, 6], "when": {"method.name": "trades"}},
        "seed": {"choices": [0, 1], "when": {"method.name": "fgsm", "method.beta": 6}},
    }
    assert problems(raw) == {"space.seed.when": "no point of the space has method.name = fgsm and method.beta = 6"}


def test_a_path_that_is_given_twice_is_named():
    twice = space({"method.beta": [1, 2]}) * 2
    assert "space.method.beta" in {problem.field for problem in check_space(twice, {"method": "trades"})}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "either choices, or low and high"),
        ({"low": 1}, "either choices, or low and high"),
        ({"choices": [], "low": 1, "high": 2}, "either choices, or low and high"),
        ({"choices": [1], "low": 1, "high": 2}, "either choices, or low and high"),
        ({"choices": []}, "either choices, or low and high"),
        ({"low": 2, "high": 1}, "low 2 must be below high 1"),
        ({"low": 1, "high": 1}, "must be below"),
        ({"low": 0, "high": 1, "log": True}, "log needs a low above 0"),
        ({"low": 1, "high": 2, "log": True, "step": 0.1}, "log and step exclude each other"),
        ({"low": "one", "high": 2}, "not a number or a fraction"),
        ({"low": 1, "high": 2, "lgo": True}, "Extra inputs"),
        ({"low": 1, "high": 2, "step": 0}, "step 0 must be above 0"),
        ({"low": 1, "high": 2, "step": -0.5}, "step -0.5 must be above 0"),
        ({"low": 1, "high": 2, "step": 1.5}, "step 1.5 must be above 0 and at most high - low, 1"),
        ({"low": 1.5, "high": 3.7, "integer": True}, "a whole low, not 1.5; integer needs a whole high, not 3.7"),
        ({"low": 1, "high": 9, "step": 1.5, "integer": True}, "integer needs a whole step, not 1.5"),
        ({"choices": [1, 2], "low": 0}, "low would do nothing beside choices"),
        ({"choices": [1, 2], "step": 1, "log": True}, "log and step would do nothing beside choices"),
        ({"choices": [1, 2], "integer": True}, "integer would do nothing beside choices"),
        ({"choices": ["8/255", "4/255", "8/255"]}, "the same choice twice: '8/255'"),
        ({"choices": [[0.5], [0.4], [0.5]]}, r"the same choice twice: \[0.5\]"),
        ({"choices": [1], "when": {"method.name": []}}, "when method.name: name at least one value"),
    ],
)
def test_a_dimension_that_contradicts_itself_is_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        Dimension(path="method.beta", **fields)


def test_dimensions_describe_themselves():
    described = list(map(str, space(CONDITIONAL)))
    assert described[0] == "method.name: fgsm | trades | fgsm_rs_der"
    assert described[1] == "method.beta: 1 … 12 (log)  when method.name = trades"
    assert described[4].startswith("method.regularizer.gamma: 0 … 1 (step 0.25)")
    assert str(Dimension(path="epochs", low=2, high=8, step=3, integer=True)) == "epochs: 2 … 8 (integer, step 3)"


def test_every_corner_of_a_space_without_problems_is_an_experiment():
    from trainers.config import apply_values, parse

    digests = {parse(apply_values({}, values)).digest() for values in corners(space(CONDITIONAL))}
    pairs = itertools.combinations(digests, 2)
    assert all(left != right for left, right in pairs)
    assert len(digests) >= 6


# Variants


TABLE = {
    "row": {"variants": {"plain": {"method.name": "sat"}, "weighted": {"method.name": "weat_adv", "method.beta": 6}}},
    "method.beta": {"low": 1, "high": 9, "when": {"row": "weighted"}},
}


def test_a_variant_stands_for_the_fields_of_its_row():
    space = tuple(Dimension(**fields) for fields in read_space(TABLE))
    assert settings(space, {"row": "plain"}) == {"method.name": "sat"}
    assert settings(space, {"row": "weighted", "method.beta": 2}) == {"method.name": "weat_adv", "method.beta": 2}
    assert check_space(space, {}) == []
    assert {point["row"] for point in corners(space)} == {"plain", "weighted"}


def test_choices_beside_variants_are_refused():
    with pytest.raises(ValidationError, match="leave choices out"):
        space({"row": {"choices": ["weighted", "plain"], "variants": TABLE["row"]["variants"]}})


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        ({"row": {"variants": {"one": {"seed": 1}, "two": {}}}, "seed": [3, 4]}, "seed", "well, and row = one"),
        ({"epochs": [2, 3], "row": {"variants": {"one": {"epochs": 4}}}}, "row", "sets epochs as well, and epochs = 2"),
        ({"method.name": ["sat", "fgsm"], "method": ["fgsm_rs", "n_fgsm"]}, "method", "and method.name = sat"),
        ({"model": [{"name": "small", "width": 4}], "model.width": [8, 16]}, "model.width", "and model = "),
    ],
)  # fmt: skip
def test_two_dimensions_that_set_one_field_are_refused_for_one_of_them_would_do_nothing(raw, field, says):
    found = problems(raw)
    assert says in found[f"space.{field}"]


def test_dimensions_that_never_set_one_field_at_one_point_may_share_it():
    apart = {
        "row": {"variants": {"given": {"method.name": "trades", "method.beta": 6}, "free": {"method.name": "trades"}}},
        "method.beta": {"low": 1, "high": 9, "when": {"row": "free"}},
        "model": ["small"],
        "model.width": [8, 16],
    }
    assert problems(apart) == {}


def test_a_mistake_in_a_variant_is_named_with_its_row():
    table = {"row": {"variants": {"right": {"method.name": "sat"}, "wrong": {"method.name": "satt"}}}}
    (problem,) = check_space(tuple(Dimension(**fields) for fields in read_space(table)), {})
    assert problem.field == "space.method.name"
    assert "Did you mean sat" in problem.message
    assert "row=wrong" in problem.message


def test_the_weat_ablation_is_the_table_of_the_paper():
    study = load_study("weat_ablation")
    rows = [study.experiment_for(point).method for point in corners(study.space)]
    slots = [(m.inner.name, m.outer.name, m.beta, m.weighting and m.weighting.name) for m in rows]
    assert slots == [
        ("pgd", "bce_adv_kl", 5, "misclassification"),
        ("pgd", "ce_adv_kl", 5, "misclassification"),
        ("pgd", "ce_adv_kl", 6, None),
        ("pgd_kl", "ce_adv_kl", 6, None),
        ("pgd_kl", "ce_nat_kl", 6, None),
        ("pgd_kl", "ce_nat_kl", 5, "margin"),
        ("pgd_kl", "ce_nat_kl", 6, "energy"),
        ("pgd_kl", "ce_adv_kl", 6, "energy"),
    ]
    assert [m.weighting and m.weighting.parameters["applies_to"] for m in rows] == [
        *("divergence", "divergence", None, None, None, "all", "all", "all")
    ]
    assert study.search.trials == len(rows) == 8
    assert [m.inner.parameters.get("start") for m in rows[:3]] == ["gaussian"] * 3
    assert rows[5].weighting.parameters | {"start": 0} == rows[5].weighting.parameters
    assert study.confirm.attack == "pgd20,autoattack"


# Grids


def test_a_grid_has_as_many_points_as_its_branches_together():
    table = {
        "method.name": ["fgsm", "trades", "fgsm_der"],
        "method.beta": {"low": 1, "high": 3, "integer": True, "when": {"method.name": "trades"}},
        "method.regularizer.beta": {"low": 10, "high": 30, "step": 10, "when": {"method.name": "fgsm_der"}},
        "attack.epsilon": ["8/255", "16/255"],
        "optimizer.batch_size": {"low": 32, "high": 130, "step": 32, "integer": True},
    }
    dimensions = [Dimension(**fields) for fields in read_space(table)]
    assert grid_size(dimensions) == (1 + 3 + 3) * 2 * 4
    whole = {
        "attack.steps": {"low": 1, "high": 5, "step": 2, "integer": True},
        "attack.step_size": {"choices": [0.1, 0.2], "when": {"attack.steps": [3, 5]}},
    }
    assert grid_size([Dimension(**fields) for fields in read_space(whole)]) == 1 + 2 + 2
    continuous = Dimension(path="optimizer.learning_rate", low=0.1, high=0.2)
    assert grid_size([*dimensions, continuous]) is None
    assert grid_size([]) == 1


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_studies_are_valid_ask_a_question_and_say_how_they_are_run(name):
    study = load_study(name)
    assert study.name == name
    first, *_ = header(shipped()[name]).splitlines()
    assert "?" in first
    assert f"orchestrator sweep {name}" in shipped()[name].read_text()
    assert all(study.experiment_for(point) for point in corners(study.space))
