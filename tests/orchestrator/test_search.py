"""Proposals depend on the study's seed, the trial's number and its history, not on the process that makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from orchestrator.search import MAX_ATTEMPTS, Outcome, StudySearcher
from search_spaces.study import Study, parse_study


def made_up_study(**search: object) -> Study:
    return parse_study(
        {
            "name": "s",
            "experiment": {"evaluation": {"epsilon": 0.1}},
            "space": {
                "method.name": ["fgsm", "trades"],
                "method.beta": {"low": 1, "high": 10, "log": True, "when": {"method.name": "trades"}},
                "attack.epsilon": {"low": 0.05, "high": 0.2},
            },
            "search": {"trials": 8, "startup_trials": 2, "seed": 7, **search},
        }
    )


class Driver:
    """A searcher whose trials all end with objectives that follow from their values."""

    def __init__(self, url: str, study: Study) -> None:
        self.ended: list[tuple[int, Outcome]] = []
        self.proposed: dict[int, dict[str, object]] = {}
        self.judge_values: Callable[[float], tuple[float, ...]] = lambda epsilon: (1 - epsilon, epsilon)
        self.stopped: dict[int, Outcome] = {}
        self.searcher = StudySearcher(
            study, url, self.propose, self.judge, lambda n, o: self.ended.append((n, o)), self.stopped.get
        )

    def propose(self, number: int, values: dict[str, object]) -> dict[str, object]:
        self.proposed[number] = dict(values)
        return {"number": number}

    def judge(self, number: int, report: dict[str, object]) -> Outcome | None:
        if "failure" in report:
            return Outcome("failed", str(report["failure"]))
        if report.get("interrupted"):
            return None
        if number in self.stopped:
            return self.stopped[number]
        epsilon = float(self.proposed[number]["attack.epsilon"])
        return Outcome("complete", "", self.judge_values(epsilon))

    def start(self) -> int | None:
        configuration = self.searcher.suggest("tune-id")
        return None if configuration == "FINISHED" else configuration["number"]

    def run_to_the_end(self) -> None:
        while self.start() is not None:
            self.searcher.on_trial_complete("tune-id", {})


def url(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / name}.db"


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_a_killed_study_proposes_what_an_uninterrupted_one_does(tmp_path: Path, sampler: str) -> None:
    study = made_up_study(sampler=sampler)
    whole = Driver(url(tmp_path, "whole"), study)
    whole.run_to_the_end()
    assert sorted(whole.proposed) == list(range(8))
    first = Driver(url(tmp_path, "killed"), study)
    for _ in range(3):
        first.start()
        first.searcher.on_trial_complete("tune-id", {})
    first.start()  # the driver dies while trial 3 runs
    second = Driver(url(tmp_path, "killed"), study)
    second.run_to_the_end()
    assert list(second.proposed) == [3, 4, 5, 6, 7]
    assert first.proposed | second.proposed == whole.proposed
    assert len({str(values) for values in whole.proposed.values()}) == 8


def test_an_interrupted_trial_stays_open_and_a_failed_one_does_not(tmp_path: Path) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study())
    driver.start()
    driver.searcher.on_trial_complete("tune-id", {"interrupted": True})
    driver.start()
    driver.searcher.on_trial_complete("tune-id", None, error=True)
    stored = optuna.load_study(study_name="s", storage=url(tmp_path, "s"))
    assert [trial.state.name for trial in stored.trials] == ["RUNNING", "FAIL"]
    assert driver.ended == [(1, Outcome("failed", "its processes died"))]


@pytest.mark.parametrize("objectives", [["val/pgd10_accuracy"], ["val/clean_accuracy", "val/pgd10_accuracy"]])
def test_optuna_knows_a_stopped_trial_as_pruned_and_goes_on_proposing(tmp_path: Path, objectives: list[str]) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study(objectives=objectives))
    if len(objectives) == 1:
        driver.judge_values = lambda epsilon: (epsilon,)
    curve = (0.3, 0.4, 0.02) if len(objectives) == 1 else ()
    outcome = Outcome("stopped", "collapsed", (), curve)
    driver.stopped |= {1: outcome, 2: outcome}
    driver.run_to_the_end()  # six proposals of TPE, which reads pruned trials too
    stored = optuna.load_study(study_name="s", storage=url(tmp_path, "s"))
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE", "PRUNED", "PRUNED", *["COMPLETE"] * 5]
    assert stored.trials[1].user_attrs["reason"] == "collapsed"
    assert stored.trials[1].intermediate_values == dict(enumerate(curve))
    assert driver.ended[1] == (1, outcome)


@pytest.mark.filterwarnings("error::optuna.exceptions.ExperimentalWarning")
def test_a_grid_is_run_to_its_last_point_once_each(tmp_path: Path) -> None:
    study = made_up_study(sampler="grid", trials=4)
    space = {"method.name": ["fgsm", "trades"], "attack.epsilon": [0.1, 0.2]}
    driver = Driver(url(tmp_path, "s"), parse_study(study.to_raw() | {"space": space}))
    driver.run_to_the_end()
    assert [outcome.state for _, outcome in driver.ended] == ["complete"] * 4
    assert len({str(values) for values in driver.proposed.values()}) == 4


def test_a_trial_that_was_stopped_before_the_driver_died_is_not_issued_again(tmp_path: Path) -> None:
    Driver(url(tmp_path, "s"), made_up_study()).start()
    second = Driver(url(tmp_path, "s"), made_up_study())
    second.stopped[0] = Outcome("stopped", "collapsed")
    assert second.start() == 1
    assert second.ended == [(0, Outcome("stopped", "collapsed"))]
    assert list(second.proposed) == [1]


def test_a_trial_that_kills_its_driver_again_and_again_is_given_up(tmp_path: Path) -> None:
    for _ in range(MAX_ATTEMPTS):
        assert Driver(url(tmp_path, "s"), made_up_study()).start() == 0
    last = Driver(url(tmp_path, "s"), made_up_study())
    assert last.start() == 1
    assert last.ended[0][1].reason == f"given up after {MAX_ATTEMPTS} attempts"


def test_starting_points_are_tried_first_and_once(tmp_path: Path) -> None:
    study = made_up_study(start=[{"method.name": "trades", "method.beta": 3, "attack.epsilon": 0.1}])
    for number in (0, 1):
        driver = Driver(url(tmp_path, "s"), study)
        assert driver.start() == number
        driver.searcher.on_trial_complete("tune-id", {})
        if number == 0:
            assert driver.proposed[0] == {"method.name": "trades", "method.beta": 3, "attack.epsilon": 0.1}
        else:
            assert driver.proposed[1]["attack.epsilon"] != 0.1


def test_other_objectives_are_refused(tmp_path: Path) -> None:
    Driver(url(tmp_path, "s"), made_up_study())
    with pytest.raises(ValueError, match="has the objectives"):
        Driver(url(tmp_path, "s"), made_up_study(objectives=["val/pgd10_accuracy", "val/clean_accuracy"]))
