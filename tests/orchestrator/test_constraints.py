"""Trials that violate a constraint are neither chosen nor held for good by Optuna."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from orchestrator.records import constraints
from orchestrator.records.constraints import feasible, limits, violations
from orchestrator.records.runs import Run
from orchestrator.records.study_folder import create_study_folder, read_study
from orchestrator.records.trials import trials
from orchestrator.report import figures, held_out
from orchestrator.report.held_out import held_out_points
from orchestrator.report.page import write_report
from orchestrator.report.plates import plates
from orchestrator.report.sections import all_trials
from orchestrator.report.tables import trial_rows
from orchestrator.study.confirm import distinct
from search_spaces.study import Study, parse_study
from tests.orchestrator.made_up import end_run, record, said
from tests.orchestrator.made_up_driver import Driver, made_up_study, url
from trainers.problems import InvalidInput
from trainers.records import EpochRecord, append_record

NAMES = ("val/clean_accuracy", "val/pgd10_accuracy")
# trial -> (clean, robust)
ENDED = {0: (0.90, 0.40), 1: (0.88, 0.48), 2: (0.895, 0.45)}


def study(**constraint: object) -> Study:
    return made_up_study(constraints={"val/clean_accuracy": constraint}, start=[{"method.name": "fgsm"}])


def runs(of: Study, folder: Path, ended: dict[int, tuple[float, float]] = ENDED) -> list[Run]:
    found = []
    for number in range(4):
        objectives = ended.get(number, ())
        metrics = dict(zip(NAMES, objectives, strict=False))
        records = (EpochRecord(0, 0.0, metrics),) if objectives else ()
        experiment = of.experiment_for({"seed": number})
        state = "complete" if objectives else "running"
        key = f"trial-{number:04d}"
        found.append(Run(key, "trial", number, {}, experiment, folder, state, objectives=objectives, records=records))
    return found


@pytest.mark.parametrize(
    ("constraint", "numbers"),
    [
        ({"at_least": 0.89}, [0, 2]),
        ({"baseline": 0, "minus": 0.01}, [0, 2]),
        ({"baseline": 0}, [0]),
        ({"at_least": 0.95}, []),
    ],
)
def test_only_trials_that_meet_the_constraint_are_chosen(constraint, numbers, tmp_path):
    of = study(**constraint)
    chosen = distinct(feasible(of, runs(of, tmp_path)))
    assert sorted(trial.number for trial in chosen) == numbers


def test_a_baseline_that_has_not_ended_constrains_nobody_yet(tmp_path):
    of = study(baseline=0, minus=0.01)
    known = runs(of, tmp_path, {1: ENDED[1]})
    assert violations(limits(of, known), trials(known)[1], of.search.checkpoint) == {}
    known = runs(of, tmp_path)
    assert violations(limits(of, known), trials(known)[1], of.search.checkpoint) == {
        "val/clean_accuracy": pytest.approx(0.01)
    }
    assert violations(limits(of, known), trials(known)[0], of.search.checkpoint) == {
        "val/clean_accuracy": pytest.approx(-0.01)
    }
    assert violations(limits(of, known), trials(known)[3], of.search.checkpoint) == {}


def test_each_of_several_constraints_must_be_met(tmp_path):
    both = {"val/clean_accuracy": {"at_least": 0.89}, "val/pgd10_accuracy": {"baseline": 1, "minus": 0.04}}
    of = made_up_study(constraints=both, start=[{"method.name": "fgsm"}, {"method.name": "trades"}])
    known = runs(of, tmp_path)
    assert limits(of, known) == {"val/clean_accuracy": 0.89, "val/pgd10_accuracy": pytest.approx(0.44)}
    assert [trial.number for trial in distinct(feasible(of, known))] == [2]


def test_what_runs_or_failed_neither_constrains_nor_violates(tmp_path):
    of = study(baseline=0)
    known = [replace(run, state="running", objectives=()) if run.trial == 0 else run for run in runs(of, tmp_path)]
    assert limits(of, known) == limits(of, []) == {"val/clean_accuracy": None}
    (failed,) = trials([replace(known[1], state="failed", objectives=())])
    assert violations({"val/clean_accuracy": 0.89}, failed, of.search.checkpoint) == {}


def test_a_report_groups_runs_and_finds_its_points_as_often_for_many_trials_as_for_few(tmp_path, monkeypatch):
    of = study(baseline=0, minus=0.01)
    counts = []
    for number, copies in enumerate((1, 10)):
        journal = create_study_folder(tmp_path / f"{number}", of)
        for trial in range(3 * copies):
            objectives = ENDED[trial % 3]
            folder = journal.trial_folder(trial)
            journal.propose(trial, {}, of.experiment_for({"seed": trial}), folder=folder)
            append_record(
                folder, EpochRecord(0, 0.0, record(0, None, 0.2).metrics | dict(zip(NAMES, objectives, strict=True)))
            )
            end_run(journal, f"trial-{trial:04d}", "complete", "", list(objectives))
        calls = Counter()
        for module, name in ((constraints, "trials"), (constraints, "limits"), (held_out, "pareto_indices")):
            counted(module, name, calls, monkeypatch)
        write_report(journal)
        monkeypatch.undo()
        counts.append(calls)
    assert counts[0] == counts[1]
    assert counts[0]["pareto_indices"] == 1


def counted(module, name, calls, monkeypatch):
    call = getattr(module, name)

    def count(*arguments):
        calls[name] += 1
        return call(*arguments)

    monkeypatch.setattr(module, name, count)


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_baseline_that_does_not_count_constrains_by_what_it_reached(state, tmp_path):
    of = study(baseline=0, minus=0.01)
    known = [replace(run, state=state, objectives=()) if run.trial == 0 else run for run in runs(of, tmp_path)]
    assert limits(of, known) == {"val/clean_accuracy": pytest.approx(0.89)}
    assert [trial.number for trial in distinct(feasible(of, known))] == [2]


def test_a_constraint_whose_baseline_recorded_nothing_is_said_not_to_act(tmp_path):
    of = study(baseline=0, minus=0.01)
    ended = {"state": "failed", "objectives": (), "records": ()}
    known = [replace(run, **ended) if run.trial == 0 else run for run in runs(of, tmp_path)]
    assert limits(of, known) == {"val/clean_accuracy": None}
    assert [row.constraints for row in trial_rows(of, known)] == [
        "", "val/clean_accuracy has no baseline", "val/clean_accuracy has no baseline", ""
    ]  # fmt: skip
    assert "That of val/clean_accuracy is not applied: its baseline has no result." in said(of, known)


def test_optuna_holds_the_violation_and_leaves_the_trial_out_of_its_front(tmp_path):
    constraints = {"val/clean_accuracy": {"at_least": 0.5}}
    driver = Driver(url(tmp_path, "constrained"), made_up_study(trials=2, constraints=constraints))
    driver.violations = lambda number: {"val/clean_accuracy": 0.1 if number else -0.1}
    driver.run_to_the_end()
    stored = optuna.load_study(study_name="s", storage=url(tmp_path, "constrained"))
    assert [trial.number for trial in stored.best_trials] == [0]
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize(
    ("constraints", "says"),
    [
        ({"val/clean_accuracy": {}}, "either at_least or baseline"),
        ({"val/clean_accuracy": {"at_least": 0.5, "baseline": 0}}, "either at_least or baseline"),
        ({"val/clean_accuracy": {"at_least": 0.5, "minus": 0.1}}, "minus belongs to a baseline"),
        ({"val/clean_accuracy": {"baseline": 1}}, "search.start has 1 points"),
        ({"train/accuracy": {"at_least": 0.5}}, "val/clean_accuracy"),
    ],
)
def test_a_constraint_that_makes_no_sense_is_named(constraints, says):
    with pytest.raises(InvalidInput, match=says):
        made_up_study(constraints=constraints, start=[{"method.name": "fgsm"}])


def test_a_study_whose_trials_all_violate_confirms_nothing_and_is_readable_again(tmp_path):
    of = study(at_least=0.95)
    journal = create_study_folder(tmp_path / "s", of)
    assert read_study(journal.folder).search.constraints == of.search.constraints
    assert parse_study(of.to_raw()) == of


def test_a_report_says_who_meets_the_constraints_and_calls_nobody_else_the_best(tmp_path):
    of = study(at_least=0.89)
    known = runs(of, tmp_path)
    assert [row.constraints for row in trial_rows(of, known)] == [
        "met", "val/clean_accuracy 1.00 points short", "met", ""
    ]  # fmt: skip
    assert trial_rows(study(at_least=0.9), known)[0].constraints == "met"  # exactly
    told = " ".join(said(of, known))
    assert "2 of 3 trials that count meet search.constraints." in told
    assert "Most robust on held-out images among them: trial 2 " in told
    assert "Constraints" in all_trials(of, trial_rows(of, known))
    assert said(study(at_least=0.99), known)[-1] == "0 of 3 trials that count meet search.constraints."
    free = made_up_study()
    assert "Most robust on held-out images: trial 1 " in " ".join(said(free, known))
    assert "Constraints" not in all_trials(free, trial_rows(free, known))


@pytest.mark.parametrize(("least", "front"), [(0.0, [0, 1, 2]), (0.89, [0, 2]), (0.895, [0, 2]), (0.99, [])])
def test_the_front_is_that_of_the_trials_that_meet_the_constraints(least, front, tmp_path):
    of = study(at_least=least)
    known = runs(of, tmp_path)
    assert [point.trial for point in held_out_points(of, known) if point.on_front] == front
    assert figures.pareto_front(known, held_out_points(of, known)) is not None


def test_captions_count_complete_trials_apart_from_stopped_ones_that_count(tmp_path):
    of = study(at_least=0.89)
    known = [replace(run, state="stopped") if run.trial == 2 else run for run in runs(of, tmp_path)]
    told = {
        plate.name: plate for plate in plates(of, known, held_out_points(of, known), f"sqlite:///{tmp_path}/none.db")
    }
    assert told["parameter_importance"].missing == "Needs at least 4 complete trials; there are 2."
    assert "PED-ANOVA over the 2 complete trials" in told["parameter_importance"].caption
    assert "1 of 4 trials have no result that counts: not shown." in told["pareto_front"].caption
    assert told["pareto_front"].caption.endswith("Not meeting search.constraints, and never chosen: 1.")
