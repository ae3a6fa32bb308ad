"""Proposals depend on the study's seed, the trial's number and its history, not on the process that makes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

import optuna
import pytest

from orchestrator.host.interrupt import Interrupt
from orchestrator.study.proposals import Outcome, Proposals, make_sampler, open_storage
from orchestrator.study.searcher import MAX_ATTEMPTS, StudySearcher
from orchestrator.study.tuning import SourceSearcher
from search_spaces.space import suggest
from search_spaces.study import Study, parse_study
from trainers.problems import InvalidInput


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
    """A searcher whose runs all end with objectives that follow from their values and their seed."""

    def __init__(self, url: str, study: Study, known: Mapping[tuple[int, int], Outcome] | None = None) -> None:
        self.heard: list[tuple[int, Outcome]] = []
        self.proposed: dict[int, dict[str, object]] = {}
        self.judge_values: Callable[[float], tuple[float, ...]] = lambda epsilon: (1 - epsilon, epsilon)
        self.known = dict(known or ())
        self.recorded = 0
        self.violations: Callable[[int], dict[str, float]] = lambda number: {}
        self.issued: list[tuple[int, int]] = []
        stored = open_storage(study, url, "its folder", None)
        self.searcher = StudySearcher(Proposals(study, stored), self, study.search.seeds)

    # What the searcher asks

    def propose(self, number: int, seed: int, values: dict[str, object]) -> dict[str, object]:
        self.proposed[number] = dict(values)
        self.issued.append((number, seed))
        return {"number": number}

    def judge(self, number: int, seed: int, report: dict[str, object]) -> Outcome | None:
        if "failure" in report:
            return Outcome("failed", str(report["failure"]))
        if report.get("interrupted") or report.get("crashed"):
            return None
        epsilon = float(self.proposed[number]["attack.epsilon"])
        return Outcome("complete", "", tuple(value + seed / 10 for value in self.judge_values(epsilon)))

    def decided(self, number: int, seed: int) -> Outcome | None:
        return self.known.get((number, seed))

    def epochs(self, number: int, seed: int) -> int:
        return self.recorded

    def ended(self, number: int, seed: int, outcome: Outcome) -> None:
        self.heard.append((number, outcome))

    def conclude(self, number: int, outcomes: list[Outcome]) -> Outcome:
        broken = [outcome for outcome in outcomes if not outcome.objectives]
        if broken:
            return broken[0]
        means = tuple(map(fmean, zip(*(outcome.objectives for outcome in outcomes), strict=True)))
        return Outcome("complete", "", means, violations=self.violations(number))

    # What a test does

    def start(self) -> int | None:
        configuration = self.searcher.suggest("tune-id")
        return configuration["number"] if isinstance(configuration, dict) else None

    def run_to_the_end(self) -> None:
        while self.start() is not None:
            self.searcher.ended("tune-id", {})


def url(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / name}.db"


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


@pytest.mark.filterwarnings("error::optuna.exceptions.ExperimentalWarning")
def test_a_grid_is_run_to_its_last_point_once_each(tmp_path: Path) -> None:
    raw = made_up_study(trials=9).to_raw()
    raw["space"] = {"method.name": ["fgsm", "trades"], "attack.epsilon": [0.1, 0.2]}
    raw["search"]["sampler"] = "grid"
    driver = Driver(url(tmp_path, "s"), parse_study(raw))
    driver.run_to_the_end()
    assert [outcome.state for _, outcome in driver.heard] == ["complete"] * 4
    assert len({str(values) for values in driver.proposed.values()}) == 4


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
