"""Points that are tried first are points of the space, and what is not is named before anything starts."""

from __future__ import annotations

import pytest

from search_spaces.study import parse_study
from trainers.problems import InvalidInput

SPACE = {
    "method.name": ["fgsm", "trades", "fgsm_rs_der"],
    "attack.epsilon": {"low": 0.1, "high": 0.2},
    "method.beta": {"low": 1, "high": 9, "step": 2, "when": {"method.name": "trades"}},
    "method.regularizer.samples": {"choices": ["abnormal", "all"], "when": {"method.name": "fgsm_rs_der"}},
    "method.regularizer.gamma": {"low": 0, "high": 1, "when": {"method.regularizer.samples": "all"}},
    "optimizer.batch_size": {"low": 32, "high": 96, "step": 32, "integer": True},
    "net": {"variants": {"narrow": {"model.width": 8}, "wide": {"model.width": 32}}},
    "data.augment": [False, True],
}


def study(*points, space=SPACE, **experiment):
    experiment = {"evaluation": {"epsilon": 0.1}, **experiment}
    return parse_study({"name": "s", "experiment": experiment, "space": space, "search": {"start": points}})


def complaint(*points, **sections):
    with pytest.raises(InvalidInput) as caught:
        study(*points, **sections)
    return {problem.field: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("point", "path", "says"),
    [
        ({"attack.epsilon": 0.9}, "attack.epsilon", "0.9 is none of its values: 0.1 … 0.2"),
        ({"attack.epsilon": "51.1/255"}, "attack.epsilon", "'51.1/255'"),
        ({"attack.epsilon": "abc"}, "attack.epsilon", "'abc' is not a number or a fraction"),
        ({"attack.epsilon": None}, "attack.epsilon", "None is not a number"),
        ({"method.name": "sat"}, "method.name", "Allowed: fgsm, fgsm_rs_der, trades"),
        ({"method.name": "tradez"}, "method.name", "Did you mean trades"),
        ({"method.beta": 4}, "method.beta", "4 is none of its values: 1 … 9 (step 2)"),
        ({"optimizer.batch_size": 48}, "optimizer.batch_size", "48"),
        ({"optimizer.batch_size": 64.5}, "optimizer.batch_size", "64.5"),
        ({"net": "medium"}, "net", "Allowed: narrow, wide"),
        ({"net": {"model.width": 8}}, "net", "Allowed: narrow, wide"),
        ({"data.augment": 1}, "data.augment", "1"),
        ({"method.bta": 3}, "method.bta", "Did you mean method.beta"),
    ],
)
def test_a_value_that_no_trial_would_draw_is_named(point, path, says):
    assert says in complaint({}, point)[f"search.start.1.{path}"]


@pytest.mark.parametrize(
    ("point", "path", "needs"),
    [
        ({"method.name": "fgsm", "method.beta": 3}, "method.beta", "method.name = trades"),
        (
            {"method.name": "fgsm_rs_der", "method.regularizer.samples": "abnormal", "method.regularizer.gamma": 0.1},
            "method.regularizer.gamma",
            "method.regularizer.samples = all",
        ),
        # Its gate is left open, but does not exist there either.
        ({"method.name": "fgsm", "method.regularizer.gamma": 0.1}, "method.regularizer.gamma", "samples = all"),
    ],
)
def test_a_value_of_a_dimension_that_is_not_there_is_named_with_what_it_needs(point, path, needs):
    found = complaint(point)
    assert set(found) == {f"search.start.0.{path}"}
    assert needs in found[f"search.start.0.{path}"]


def test_a_point_may_leave_open_what_its_values_need():
    points = [{"method.beta": 3}, {"method.regularizer.gamma": 0.5}, {"method.name": "trades"}, {}]
    assert study(*points).start_points == points


def test_values_are_read_as_trials_draw_them_and_stay_as_they_were_written():
    point = {"attack.epsilon": "51/255", "optimizer.batch_size": 64.0, "net": "wide", "data.augment": True}
    read = study(point)
    (values,) = read.start_points
    assert values == {"attack.epsilon": 0.2, "optimizer.batch_size": 64, "net": "wide", "data.augment": True}
    assert isinstance(values["optimizer.batch_size"], int)
    assert "51/255" in read.to_yaml()
    assert parse_study(read.to_raw()) == read


def test_a_point_between_the_corners_that_is_no_experiment_is_named():
    space = {"model.depth": {"low": 10, "high": 70, "step": 6, "integer": True}}
    found = complaint({"model.depth": 40}, {"model.depth": 46}, space=space, model="wide_resnet28_10")
    assert set(found) == {"search.start.1.model.depth"}
    assert "46 is not one of [10, 16" in found["search.start.1.model.depth"]


def test_a_mistake_of_the_space_is_not_repeated_for_every_point():
    space = {"attack.epsilon": {"low": 0.5, "high": 1.5}}
    assert set(complaint({"attack.epsilon": 0.7}, space=space)) == {"space.attack.epsilon"}
    assert set(complaint({"attack.epsilon": 0.15}, epochs=0)) == {"experiment.epochs"}


def test_a_point_that_is_given_twice_is_named_for_only_one_would_be_tried():
    found = complaint({"attack.epsilon": 0.2}, {}, {"attack.epsilon": "51/255"})
    assert found == {"search.start.2": "is search.start.0 again"}


def test_all_mistakes_of_all_points_come_in_one_message():
    found = complaint({"attack.epsilon": 0.9, "method.name": "sat"}, {"net": "medium"}, {"data.augmnt": True})
    assert set(found) == {
        "search.start.0.attack.epsilon",
        "search.start.0.method.name",
        "search.start.1.net",
        "search.start.2.data.augmnt",
    }
