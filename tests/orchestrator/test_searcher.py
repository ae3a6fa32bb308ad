"""Which run is issued next, and what Optuna hears of a trial, whoever dies in between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest

from orchestrator.host.interrupt import Interrupt
from orchestrator.study.proposals import Outcome, open_storage
from orchestrator.study.searcher import MAX_ATTEMPTS
from orchestrator.study.tuning import SourceSearcher
from tests.orchestrator.made_up_driver import Driver, made_up_study, url
from trainers.problems import InvalidInput


@pytest.mark.parametrize("report", [{}, {"interrupted": True}])
def test_an_interrupted_trial_stays_open_whether_it_had_begun_or_not(tmp_path: Path, report: dict[str, object]) -> None:
    for _ in range(MAX_ATTEMPTS + 1):  # however often the user does that
        driver = Driver(url(tmp_path, "s"), made_up_study())
        driver.judge = lambda number, seed, report: None  # type: ignore[method-assign]
        assert driver.start() == 0
        driver.searcher.ended("tune-id", report)
        assert driver.heard == []


def test_a_trial_that_fails_is_not_issued_again(tmp_path: Path) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study())
    driver.start()
    driver.searcher.ended("tune-id", {"failure": "the loss is not finite"})
    assert driver.heard == [(0, Outcome("failed", "the loss is not finite"))]
    assert Driver(url(tmp_path, "s"), made_up_study()).start() == 1


def test_a_trial_whose_processes_die_is_issued_again_until_it_makes_no_more_progress(tmp_path: Path) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study())
    for epochs in (0, 3, 5, 5, 5, 5):
        assert driver.start() == 0
        driver.recorded = epochs
        driver.searcher.ended("tune-id", {"crashed": True})
    assert driver.start() == 1
    assert driver.heard == [(0, Outcome("failed", f"given up after {MAX_ATTEMPTS} attempts without a new epoch"))]


def test_the_last_trial_is_awaited_for_it_may_have_to_be_issued_again(tmp_path: Path) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study(trials=1))
    assert driver.start() == 0
    assert driver.searcher.suggest("another") is None
    driver.searcher.ended("tune-id", {"crashed": True})
    assert driver.start() == 0
    driver.searcher.ended("tune-id", {})
    assert driver.searcher.suggest("another") == "FINISHED"


def test_a_driver_that_dies_between_the_journal_and_optuna_has_ended_its_trial(tmp_path: Path) -> None:
    first = Driver(url(tmp_path, "s"), made_up_study())
    first.start()
    outcome = Outcome("complete", "", (0.9, 0.1))
    second = Driver(url(tmp_path, "s"), made_up_study(), {(0, 0): outcome})
    stored = optuna.load_study(study_name="s", storage=url(tmp_path, "s"))
    assert [(trial.state.name, tuple(trial.values)) for trial in stored.trials] == [("COMPLETE", (0.9, 0.1))]
    assert second.heard == [(0, outcome)]
    assert second.start() == 1


def test_what_goes_wrong_when_a_trial_ends_stops_the_study_and_leaves_the_trial_open(tmp_path: Path) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study())
    driver.start()
    full = OSError("no space left")

    def fail(number: int, seed: int, outcome: Outcome) -> None:
        raise full

    driver.ended = fail  # type: ignore[method-assign]
    interrupt = Interrupt(print)
    tuned = SourceSearcher(driver.searcher, interrupt)
    tuned.on_trial_complete("tune-id", {})
    with pytest.raises(OSError, match="no space left"):
        interrupt.check()
    assert tuned.suggest("another") == "FINISHED"
    assert Driver(url(tmp_path, "s"), made_up_study()).start() == 0


@pytest.mark.parametrize(
    ("result", "error", "report"),
    [(None, False, {}), ({"done": True}, False, {"done": True}), (None, True, {"crashed": True})],
)
def test_a_source_hears_in_one_way_how_tune_ended_a_run(
    tmp_path: Path, result: dict[str, object] | None, error: bool, report: dict[str, object]
) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study())
    heard: list[Mapping[str, object]] = []
    driver.judge = lambda number, seed, report: heard.append(report)  # type: ignore[method-assign]
    driver.start()
    SourceSearcher(driver.searcher, Interrupt(print)).on_trial_complete("tune-id", result, error)
    assert heard == [report]


@pytest.mark.parametrize("objectives", [["val/pgd10_accuracy"], ["val/clean_accuracy", "val/pgd10_accuracy"]])
def test_optuna_knows_a_stopped_trial_as_pruned_and_goes_on_proposing(tmp_path: Path, objectives: list[str]) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study(objectives=objectives))
    if len(objectives) == 1:
        driver.judge_values = lambda epsilon: (epsilon,)
    curve = (0.3, 0.4, 0.02) if len(objectives) == 1 else ()
    outcome = Outcome("stopped", "collapsed", (), curve)
    driver.known |= {(1, 0): outcome, (2, 0): outcome}
    driver.run_to_the_end()  # six proposals of TPE, which reads pruned trials too
    stored = optuna.load_study(study_name="s", storage=url(tmp_path, "s"))
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE", "PRUNED", "PRUNED", *["COMPLETE"] * 5]
    assert stored.trials[1].user_attrs["reason"] == "collapsed"
    assert stored.trials[1].intermediate_values == dict(enumerate(curve))
    assert driver.heard[1] == (1, outcome)


def test_a_trial_that_was_stopped_before_the_driver_died_is_not_issued_again(tmp_path: Path) -> None:
    Driver(url(tmp_path, "s"), made_up_study()).start()
    second = Driver(url(tmp_path, "s"), made_up_study(), {(0, 0): Outcome("stopped", "collapsed")})
    assert second.start() == 1
    assert second.heard == [(0, Outcome("stopped", "collapsed"))]
    assert list(second.proposed) == [1]


def test_a_trial_that_kills_its_driver_again_and_again_is_given_up(tmp_path: Path) -> None:
    for _ in range(MAX_ATTEMPTS):
        assert Driver(url(tmp_path, "s"), made_up_study()).start() == 0
    last = Driver(url(tmp_path, "s"), made_up_study())
    assert last.start() == 1
    assert last.heard[0][1].reason == f"given up after {MAX_ATTEMPTS} attempts without a new epoch"


def test_every_seed_of_a_trial_is_issued_before_the_next_and_optuna_is_told_the_mean(tmp_path: Path) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study(trials=2, seeds=3))
    driver.run_to_the_end()
    assert driver.issued == [(number, seed) for number in (0, 1) for seed in (0, 1, 2)]
    stored = optuna.load_study(study_name="s", storage=url(tmp_path, "s"))
    for trial in stored.trials:
        epsilon = trial.params["attack.epsilon"]
        assert trial.values == pytest.approx([1 - epsilon + 0.1, epsilon + 0.1])


def test_optuna_hears_of_a_trial_when_its_last_seed_has_ended_whatever_came_first(tmp_path: Path) -> None:
    driver = Driver(url(tmp_path, "s"), made_up_study(trials=1, seeds=2))
    for name in ("first", "second"):
        assert driver.searcher.suggest(name) == {"number": 0}
    assert driver.searcher.suggest("third") is None
    driver.searcher.ended("second", {})
    assert optuna.load_study(study_name="s", storage=url(tmp_path, "s")).trials[0].state.name == "RUNNING"
    driver.searcher.ended("first", {})
    assert optuna.load_study(study_name="s", storage=url(tmp_path, "s")).trials[0].state.name == "COMPLETE"


def test_after_a_kill_only_the_seeds_that_had_not_ended_are_issued_again(tmp_path: Path) -> None:
    study = made_up_study(trials=1, seeds=3)
    first = Driver(url(tmp_path, "s"), study)
    assert (first.start(), first.searcher.suggest("other")) == (0, {"number": 0})
    ended = Outcome("complete", "", (0.5, 0.25))
    second = Driver(url(tmp_path, "s"), study, {(0, 1): ended})
    second.run_to_the_end()
    assert second.issued == [(0, 0), (0, 2)]
    third = Driver(url(tmp_path, "s"), study)
    assert third.start() is None


@pytest.mark.parametrize("dies", [False, True])
def test_a_seed_without_objectives_ends_its_trial_and_those_not_begun_are_not(tmp_path: Path, dies: bool) -> None:
    study = made_up_study(trials=1, seeds=3)
    driver = Driver(url(tmp_path, "s"), study)
    driver.start()
    diverged = Outcome("failed", "the loss is not finite")
    if dies:
        driver = Driver(url(tmp_path, "s"), study, {(0, 0): diverged})
    else:
        driver.searcher.ended("tune-id", {"failure": diverged.reason})
    assert driver.start() is None
    (trial,) = optuna.load_study(study_name="s", storage=url(tmp_path, "s")).trials
    assert (trial.state.name, trial.user_attrs["reason"]) == ("FAIL", diverged.reason)


def test_other_objectives_are_refused(tmp_path: Path) -> None:
    Driver(url(tmp_path, "s"), made_up_study())
    with pytest.raises(ValueError, match="has the objectives"):
        Driver(url(tmp_path, "s"), made_up_study(objectives=["val/pgd10_accuracy", "val/clean_accuracy"]))


def test_whoever_opened_a_study_last_has_it_and_who_had_it_stops(tmp_path: Path) -> None:
    """As when the copy of a folder is resumed while the study runs, on a database that both know."""
    first = Driver(url(tmp_path, "s"), made_up_study())
    assert first.start() == 0
    second = Driver(url(tmp_path, "s"), made_up_study())
    with pytest.raises(ConnectionError, match=r"search\.storage: another driver goes on with the study 's'"):
        first.searcher.ended("tune-id", {})
    with pytest.raises(ConnectionError, match="another driver"):
        first.start()
    second.run_to_the_end()
    assert sorted(second.proposed) == list(range(8))
    trials = optuna.load_study(study_name="s", storage=url(tmp_path, "s")).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8


def test_two_studies_of_one_name_do_not_meet_in_one_database(tmp_path: Path) -> None:
    study = made_up_study()
    open_storage(study, url(tmp_path, "s"), "one folder", None)
    open_storage(study, url(tmp_path, "s"), "one folder", None)
    with pytest.raises(InvalidInput, match=r"search\.storage: .* holds a study 's' of another folder"):
        open_storage(study, url(tmp_path, "s"), "another folder", None)
