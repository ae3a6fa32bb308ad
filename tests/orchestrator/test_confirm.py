"""Which trials are confirmed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.host.interrupt import Interrupt
from orchestrator.records.journal import Journal
from orchestrator.records.runs import Run
from orchestrator.records.study_folder import create_study_folder
from orchestrator.records.trials import Trial
from orchestrator.study.progress import StudyView
from search_spaces.study import parse_study
from trainers.config import parse
from trainers.records import EpochRecord, append_record

pytest.importorskip("ray")


def trial(number: int, *objectives: float, state: str = "complete", seed: int = 0) -> Trial:
    experiment = parse({"seed": seed})
    return Trial((Run(f"trial-{number:04d}", "trial", number, {}, experiment, Path(), state, "", objectives),))


def test_the_front_comes_first_then_the_next_front_each_by_its_mean() -> None:
    from orchestrator.records.pareto import pareto_indices
    from orchestrator.study.confirm import ranked

    trials = [
        trial(0, 0.9, 0.1),
        trial(1, 0.8, 0.5),
        trial(2, 0.7, 0.4),  # beaten by 1
        trial(3, 0.5, 0.6),
        trial(4, 0.6, 0.45),  # beaten by 1
        trial(5, 0.75, 0.45, state="stopped"),  # overfitted after its best epoch; beaten by 1
    ]
    assert pareto_indices([one.objectives for one in trials[:5]]) == {0, 1, 3}
    assert [one.number for one in ranked(trials)] == [1, 3, 0, 5, 2, 4]


def test_equals_do_not_push_each_other_off_the_front() -> None:
    from orchestrator.study.confirm import ranked

    assert [one.number for one in ranked([trial(3, 0.5, 0.5), trial(1, 0.5, 0.5)])] == [1, 3]


def test_trials_of_one_experiment_stand_for_one_whoever_came_first() -> None:
    from orchestrator.study.confirm import distinct

    side_by_side = [trial(0, state="failed"), trial(1, 0.5, 0.5), trial(2, 0.4, 0.4, seed=1), trial(3, 0.5, 0.5)]
    side_by_side.append(trial(4, state="stopped", seed=2))  # pruned
    assert [one.number for one in distinct(side_by_side)] == [1, 2]


def test_confirmations_have_seeds_that_no_run_of_a_trial_had(tmp_path: Path) -> None:
    from orchestrator.study.beginnings import Beginnings
    from orchestrator.study.confirm import _job, _wanted

    study = parse_study({"name": "s", "experiment": {"seed": 7}, "search": {"seeds": 2}, "confirm": {"seeds": 3}})
    journal = create_study_folder(tmp_path / "s", study)
    session = SimpleNamespace(study=study, journal=journal)
    beginnings, chosen = Beginnings(study, journal, study.confirm_resources), trial(0, 0.5, 0.5, seed=7)
    jobs = [_job(session, beginnings, one, seed) for one, seed, _ in _wanted(study, [chosen])]  # type: ignore[arg-type]
    # Its own runs have the seeds 7 and 8.
    assert [parse(job["experiment"]).seed for job in jobs] == [9, 10, 11]


def test_a_confirmation_whose_processes_die_comes_again_as_long_as_it_gets_on(tmp_path: Path) -> None:
    from ray.tune.search import Searcher

    from orchestrator.study.confirm import _Jobs

    session = SimpleNamespace(study=None, journal=Journal(tmp_path), view=StudyView(Console(quiet=True)))
    session.interrupt = Interrupt(print)
    job = {"key": "0000-seed1", "experiment": parse({}).to_dict(), "run_dir": str(tmp_path / "run")}
    jobs = _Jobs([job], session)  # type: ignore[arg-type]
    for attempt in range(5):  # on a node that is taken away all the time
        assert jobs.suggest(f"{attempt}") == job
        assert jobs.suggest("another") is None, "it may have to be issued again"
        append_record(tmp_path / "run", EpochRecord(attempt, 0.0, {}))
        jobs.ended(f"{attempt}", {"crashed": True})
        assert session.journal.events() == []
    assert jobs.suggest("last") == job
    jobs.ended("last", {"crashed": True})
    (ended,) = session.journal.events()
    assert (ended.key, ended.state) == ("0000-seed1", "failed")
    assert jobs.suggest("none") == Searcher.FINISHED
    session.interrupt.check()
