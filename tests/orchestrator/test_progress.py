"""What the terminal is told is what happened, to the letter."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.host.interrupt import Interrupt
from orchestrator.records.runs import trial_key
from orchestrator.records.study_folder import create_study_folder
from orchestrator.study import progress
from orchestrator.study.progress import StudyView
from search_spaces.study import parse_study
from tests.orchestrator.curves import records
from tests.orchestrator.made_up import end_run, record
from trainers.config import apply_values, parse

REASON = "RuntimeError: [/gloo/tcp/pair.cc:545] [bold]closed[/bold] by peer"


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_in_an_error_are_printed_as_they_are(terminal: bool) -> None:
    output = io.StringIO()
    view = StudyView(Console(file=output, force_terminal=terminal, width=200, color_system=None, markup=False))
    with view:
        view.started("trial-0000", parse({}))
        view.ended("trial-0000", "failed", REASON)
    assert REASON in output.getvalue()


def a_view(width: int) -> tuple[StudyView, io.StringIO]:
    output = io.StringIO()
    return StudyView(Console(file=output, width=width, color_system=None)), output


@pytest.mark.parametrize("width", [80, 110, 200])
def test_every_number_and_heading_of_a_sampled_point_fits_on_a_terminal(width: int) -> None:
    view, output = a_view(width)
    values = {
        "method.name": "weat_adv_der", "method.beta": 4.5678, "method.regularizer.beta": 8.765432,
        "method.regularizer.gamma": 0.31234, "attack.epsilon": 0.11842623492795588, "epochs": 30,
    }  # fmt: skip
    view.restore("trial-0012", parse(apply_values({}, values)), [record(e, 20, 0.2) for e in range(30)], "complete")
    view.console.print(view.table())
    lines = output.getvalue().splitlines()
    assert lines[0].split() == ["run", "method", "ε", "β", "γ", "epochs", "clean", "PGD-10", "ΔE"]
    cells = lines[1].split()
    for shown in ("trial-0012", "0.1184", "4.57/8.77", "0.312", "30/30", "118.0", "2.0", "+48.00"):
        assert shown in cells
    assert "collapsed" in output.getvalue()


def test_a_run_that_ended_before_an_interruption_has_no_empty_reason() -> None:
    view, output = a_view(80)
    view.ended("trial-0000", "complete")
    view.ended("trial-0001", "failed", "no memory")
    assert output.getvalue().splitlines() == ["trial-0000  complete", "trial-0001  failed    (no memory)"]


@pytest.mark.parametrize(("energy", "said"), [([0.0, 0.0, 0.0, 5.0], "collapsed at 4"), ([0.0] * 4, "collapsed at 4?")])
def test_a_collapse_that_no_second_sign_agrees_with_has_a_question_mark(energy: list[float], said: str) -> None:
    view, output = a_view(110)
    view.restore("trial-0000", parse({}), records([0.4, 0.5, 0.5, 0.1], energy), "complete")
    view.console.print(view.table())
    assert output.getvalue().splitlines()[1].endswith(said)


def live_view() -> StudyView:
    return StudyView(Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None))


def test_a_live_table_shows_the_newest_and_those_that_run_and_looks_for_overfitting_once_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    find = progress.onsets
    monkeypatch.setattr(progress, "onsets", lambda records, of: looks.append(len(records)) or find(records, of))
    view = live_view()
    equal = parse({})
    for number in range(40):
        view.restore(f"trial-{number:04d}", equal, [record(0, None, 0.2)], "running" if number == 5 else "complete")
    view.started("trial-0040", equal)
    view.epoch("trial-0040", record(0, None, 0.2))
    known = len(looks)
    with view:
        for _ in range(3):
            first, *rest = view.table().columns[0].cells
            assert (first, list(rest)) == ("… 24 more", ["trial-0005", *(f"trial-{n:04d}" for n in range(25, 41))])
    assert len(looks) == known == 42
    assert view.table().row_count == 41  # in the end all of them


def test_a_row_keeps_of_each_epoch_what_it_shows() -> None:
    view = live_view()
    view.started("trial-0000", parse({}), [record(0, 1, 0.4)])
    view.epoch("trial-0000", record(1, 1, 0.4))
    first, last = view._rows["trial-0000"].records
    assert len(record(1, 1, 0.4).metrics) > 25
    assert sorted(first.metrics) == sorted(last.metrics) == [
        "probe/adversarial_accuracy", "probe/delta_energy/mean", "probe_reference/delta_energy/mean",
        "probe_reference/pgd10_accuracy", "val/chance_accuracy", "val/clean_accuracy", "val/pgd10_accuracy",
    ]  # fmt: skip
    view.console.print(view.table())
    assert "collapsed at 2" in view.console.file.getvalue()  # type: ignore[attr-defined]


def test_rows_are_told_apart_by_their_place_and_not_by_what_is_in_them() -> None:
    one, other = (progress.Row("a", parse({}), [record(0, None, 0.2)]) for _ in range(2))
    assert one != other


def test_runs_that_ended_are_counted_against_those_of_their_phase() -> None:
    view = live_view()
    for number in range(4):
        view.restore(f"trial-{number:04d}", parse({}), [], "complete")
    with view:
        view.phase("100 trials", runs=100)
        for number in range(4, 9):
            view.started(f"trial-{number:04d}", parse({}))
        for number in range(4, 7):
            view.ended(f"trial-{number:04d}", "complete")
        view.ended("trial-0009", "failed", "given up")  # it was never issued again
        assert "  4 of 100 runs ended  " in view._status()
        view.phase("confirming", runs=2)
        view.started("0001-seed1", parse({}))
        assert "  0 of 2 runs ended  " in view._status()
        view.ended("0001-seed1", "complete")
        assert "  1 of 2 runs ended  " in view._status()


def test_the_time_that_is_left_is_that_of_epochs_that_will_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    view = live_view()
    view.phase("4 trials", runs=4, epochs=4 * 12)
    with view:
        view.started("a", parse({"epochs": 12}))
        view.started("b", parse({"epochs": 6}), [record(0, None, 0.2), record(1, None, 0.2)])
        now = 2.0
        view.epoch("a", record(0, None, 0.2))
        # 2 s an epoch: 11 of the first, 4 of the second, whose trial has fewer, 24 of those to come.
        assert view._status().endswith("about 78 s left")
        view.ended("a", "failed", "no memory")
        assert view._status().endswith("about 56 s left")
        view.ended("c", "stopped", "told late")
        assert view._status().endswith("about 32 s left")


def test_a_run_that_is_as_it_was_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(progress, "onsets", lambda records, of: looks.append(len(records)) or [])
    view, output = a_view(110)
    one, two = record(0, None, 0.2), record(1, None, 0.2)
    for made, state in (([], "running"), ([one], "running"), ([one], "stopped"), ([one, two], "running")):
        view.restore("trial-0000", parse({}), made, state)  # type: ignore[arg-type]
        view.console.print(view.table())
    assert looks == [0, 1, 2]
    assert ["stopped" in line for line in output.getvalue().splitlines()[1::2]] == [False, False, True, False]


def test_a_search_that_goes_on_has_the_runs_that_have_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from orchestrator.study import search
    from orchestrator.study.session import Session

    study = parse_study({"name": "s", "experiment": {"epochs": 3}, "search": {"trials": 4, "seeds": 2}})
    journal = create_study_folder(tmp_path / "s", study)
    for number, seed in ((0, 0), (0, 1), (1, 0)):
        experiment = study.experiment_for({"seed": seed})
        journal.propose(number, {}, experiment, seed=seed, seeds=2, folder=journal.trial_folder(number, seed))
        end_run(journal, trial_key(number, seed), "complete", "", [0.9, 0.5])
    told: dict[str, Any] = {}
    monkeypatch.setattr(search, "run_on_slots", lambda *_: None)
    view: Any = SimpleNamespace(say=print, phase=lambda _text, **counts: told.update(counts))
    capacity: Any = SimpleNamespace(concurrent_trials=lambda _: (2, ""))
    search.run_search(Session(study, journal, capacity, view, Interrupt(print)))
    assert told == {"runs": 5, "epochs": 15}
