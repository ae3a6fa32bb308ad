"""Proposals depend on the study's seed, the trial's number and its history, not on the process that makes them."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
import pytest

from orchestrator.study.proposals import make_sampler, open_storage
from search_spaces.space import suggest
from search_spaces.study import parse_study
from tests.orchestrator.made_up_driver import Driver, made_up_study, url


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "gp"])
def test_a_killed_study_proposes_what_an_uninterrupted_one_does(tmp_path: Path, sampler: str) -> None:
    study = made_up_study(sampler=sampler)
    whole = Driver(url(tmp_path, "whole"), study)
    whole.run_to_the_end()
    assert sorted(whole.proposed) == list(range(8))
    first = Driver(url(tmp_path, "killed"), study)
    for _ in range(3):
        first.start()
        first.searcher.ended("tune-id", {})
    first.start()  # the driver dies while trial 3 runs
    second = Driver(url(tmp_path, "killed"), study)
    second.run_to_the_end()
    assert list(second.proposed) == [3, 4, 5, 6, 7]
    assert first.proposed | second.proposed == whole.proposed
    assert len({str(values) for values in whole.proposed.values()}) == 8


@pytest.mark.parametrize(("sampler", "drawn"), [("tpe", 0), ("tpe", 1), ("tpe", 2), ("nsga2", 1)])
def test_a_driver_that_dies_while_it_draws_a_proposal_leaves_no_trace(
    tmp_path: Path, sampler: str, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = made_up_study(sampler=sampler, trials=4)
    whole = Driver(url(tmp_path, "whole"), study)
    whole.run_to_the_end()
    first = Driver(url(tmp_path, "killed"), study)
    for _ in range(3):
        first.start()
        first.searcher.ended("tune-id", {})
    ask = first.searcher._proposals._stored.ask

    def die_while_drawing() -> optuna.trial.Trial:
        trial = ask()
        suggest(study.space[:drawn], trial)
        raise SystemExit

    monkeypatch.setattr(first.searcher._proposals._stored, "ask", die_while_drawing)
    with pytest.raises(SystemExit):
        first.start()
    second = Driver(url(tmp_path, "killed"), study)
    second.run_to_the_end()
    assert first.proposed | second.proposed == whole.proposed
    assert [outcome.state for _, outcome in second.heard] == ["complete"]


@pytest.mark.filterwarnings("error::optuna.exceptions.ExperimentalWarning")
def test_a_grid_is_run_to_its_last_point_once_each(tmp_path: Path) -> None:
    raw = made_up_study(trials=9).to_raw()
    raw["space"] = {"method.name": ["fgsm", "trades"], "attack.epsilon": [0.1, 0.2]}
    raw["search"]["sampler"] = "grid"
    driver = Driver(url(tmp_path, "s"), parse_study(raw))
    driver.run_to_the_end()
    assert [outcome.state for _, outcome in driver.heard] == ["complete"] * 4
    assert len({str(values) for values in driver.proposed.values()}) == 4


def test_a_whole_number_that_was_enqueued_is_the_same_when_its_trial_is_issued_again(tmp_path: Path) -> None:
    study = made_up_study(start=[{"method.name": "trades", "method.beta": 3, "attack.epsilon": 0.1}])
    proposed = []
    for _ in range(2):
        driver = Driver(url(tmp_path, "s"), study)
        driver.start()
        proposed.append(repr(driver.proposed[0]))
    assert proposed[0] == proposed[1]


def test_starting_points_are_tried_first_and_once(tmp_path: Path) -> None:
    study = made_up_study(start=[{"method.name": "trades", "method.beta": 3, "attack.epsilon": 0.1}])
    for number in (0, 1):
        driver = Driver(url(tmp_path, "s"), study)
        assert driver.start() == number
        driver.searcher.ended("tune-id", {})
        if number == 0:
            assert driver.proposed[0] == {"method.name": "trades", "method.beta": 3, "attack.epsilon": 0.1}
        else:
            assert driver.proposed[1]["attack.epsilon"] != 0.1


def test_whole_numbers_come_in_the_steps_of_their_dimension(tmp_path: Path) -> None:
    raw = made_up_study(trials=6).to_raw()
    raw["space"]["optimizer.batch_size"] = {"low": 32, "high": 128, "step": 48, "integer": True}
    driver = Driver(url(tmp_path, "s"), parse_study(raw))
    driver.run_to_the_end()
    sizes = {values["optimizer.batch_size"] for values in driver.proposed.values()}
    assert len(sizes) > 1
    assert sizes <= {32, 80, 128}


def test_a_starting_point_may_be_written_as_a_fraction(tmp_path: Path) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study(start=[{"method.name": "fgsm", "attack.epsilon": "26/255"}]))
    driver.start()
    assert driver.proposed[0] == {"method.name": "fgsm", "attack.epsilon": 26 / 255}


def test_a_kill_while_starting_points_are_queued_loses_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [{"method.name": "fgsm", "attack.epsilon": epsilon} for epsilon in (0.1, 0.15)]
    study, enqueue = made_up_study(start=points, trials=3), optuna.Study.enqueue_trial

    def dying(self: optuna.Study, params: dict[str, object], **options: bool) -> None:
        if params == points[1]:
            raise KeyboardInterrupt
        enqueue(self, params, **options)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", dying)
    with pytest.raises(KeyboardInterrupt):
        open_storage(study, url(tmp_path, "s"), "its folder", None)
    monkeypatch.undo()
    driver = Driver(url(tmp_path, "s"), study)
    driver.run_to_the_end()
    assert [driver.proposed[number] for number in (0, 1)] == points
    assert driver.proposed[2] not in points


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "qmc", "gp"])
def test_dimensions_under_conditions_are_drawn_anew_in_every_trial(sampler: str, tmp_path: Path) -> None:
    raw = {
        "name": "s",
        "experiment": {"epochs": 2, "evaluation": {"epsilon": 0.1}},
        "space": {
            "attack.epsilon": {"low": 0.1, "high": 0.3},
            "method.name": ["fgsm", "fgsm_der"],
            "method.regularizer.beta": {"low": 1, "high": 60, "log": True, "when": {"method.name": "fgsm_der"}},
        },
        "search": {"sampler": sampler, "trials": 16, "start": [{"method.name": "fgsm", "attack.epsilon": 0.2}]},
    }
    driver = Driver(url(tmp_path, "conditions"), parse_study(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        driver.run_to_the_end()
    drawn = [values["method.regularizer.beta"] for values in driver.proposed.values() if len(values) == 3]
    assert len(set(drawn)) == len(drawn) > 3


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "cmaes"])
def test_a_limit_that_becomes_known_in_mid_study_suits_every_sampler(sampler: str, tmp_path: Path) -> None:
    objectives = ["val/pgd10_accuracy"]
    constraints = {"val/clean_accuracy": {"baseline": 0}, "val/pgd10_accuracy": {"at_least": 0.1}}
    raw = {
        "name": "s",
        "experiment": {"epochs": 2, "evaluation": {"epsilon": 0.1}},
        "space": {"attack.epsilon": {"low": 0.1, "high": 0.3}, "optimizer.learning_rate": {"low": 0.01, "high": 0.1}},
        "search": {
            "sampler": sampler, "trials": 8, "startup_trials": 2, "objectives": objectives, "constraints": constraints,
            "start": [{"attack.epsilon": 0.2}],
        },
    }  # fmt: skip
    driver = Driver(url(tmp_path, "limits"), parse_study(raw))
    driver.judge_values = lambda epsilon: (1 - epsilon,)
    driver.violations = lambda number: (
        {"val/pgd10_accuracy": -0.1} | ({"val/clean_accuracy": 0.1} if number > 3 else {})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        driver.run_to_the_end()
    assert len(driver.proposed) == 8


@pytest.mark.parametrize("sampler", ["qmc", "grid"])
def test_a_sampler_that_optuna_calls_experimental_is_made_without_a_word(sampler: str) -> None:
    make_sampler(made_up_study().search.model_copy(update={"sampler": sampler}), 0)


def test_cmaes_searches_numbers_for_one_objective(tmp_path: Path) -> None:
    space = {"attack.epsilon": {"low": 0.05, "high": 0.2}, "optimizer.learning_rate": {"low": 0.01, "high": 1.0}}
    study = parse_study(
        {
            "name": "s",
            "experiment": {"evaluation": {"epsilon": 0.1}},
            "space": space,
            "search": {"sampler": "cmaes", "trials": 24, "startup_trials": 1, "objectives": ["val/pgd10_accuracy"]},
        }
    )
    whole = Driver(url(tmp_path, "whole"), study)
    whole.judge_values = lambda epsilon: (-abs(epsilon - 0.08),)
    whole.run_to_the_end()
    epsilons = [float(values["attack.epsilon"]) for values in whole.proposed.values()]
    assert abs(sum(epsilons[-6:]) / 6 - 0.08) < abs(sum(epsilons[:6]) / 6 - 0.08)
