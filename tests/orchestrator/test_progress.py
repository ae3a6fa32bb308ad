"""What the terminal is told is what happened, to the letter."""

from __future__ import annotations

import io
from dataclasses import replace
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


def test_elsewhere_than_on_a_terminal_every_event_is_a_line_and_none_is_broken() -> None:
    view, output = a_view(40)
    sat_der = {"method.name": "sat_der", "method.regularizer.beta": 3, "method.regularizer.gamma": 0.25}
    der = parse(apply_values({}, sat_der | {"attack.epsilon": "8/255", "epochs": 8}))
    fgsm = parse(apply_values({}, {"method.name": "fgsm", "attack.epsilon": 0.1, "epochs": 8}))
    first, second, *later = [record(epoch, 2, 0.4) for epoch in range(4)]
    with view:
        assert view.is_idle
        view.restore("trial-0009", fgsm, [first], "complete")
        assert view.is_idle
        view.phase("searching", runs=2)
        assert not view.is_idle
        view.started("trial-0000", der)
        view.started("trial-0001", fgsm, [first, second])
        for one in (second, *later):
            view.epoch("trial-0001", one)
        view.ended("trial-0000", "complete", "completed")
        view.ended("trial-0001", "stopped", "it collapsed")
    assert output.getvalue().splitlines() == [
        "searching",
        "trial-0000  started   sat_der     ε=8/255  β=3  γ=0.25",
        "trial-0001  started   fgsm        ε=0.1  β=-  γ=-  from epoch 2",
        "trial-0001  collapsed at 3",
        "trial-0000  complete  no epoch",
        "trial-0001  stopped   clean 66.0 %  PGD-10 2.0 %  ΔE +8.00  collapsed at 3  (it collapsed)",
    ]


def test_on_a_terminal_only_a_failure_is_a_line_and_the_whole_table_stays() -> None:
    view = live_view()
    with view:
        view.phase("searching", runs=20)
        for number in range(20):
            view.started(f"trial-{number:04d}", parse({"epochs": 8}))
            for epoch in (0, 1):
                view.epoch(f"trial-{number:04d}", record(epoch, 1, 0.5))
            view.ended(f"trial-{number:04d}", "stopped" if number == 1 else "complete", "too slow")
        view.ended("trial-0002", "failed", "no memory")
    output = view.console.file.getvalue()  # type: ignore[attr-defined]
    assert output.count("trial-0002 failed: no memory") == 1
    assert "started" not in output
    assert "too slow" not in output
    assert not [line for line in output.splitlines() if line.endswith(("searching", "trial-0000  collapsed at 2"))]
    _, *rows = output[output.rindex("PGD-10") :].splitlines()
    assert [line.split()[0] for line in rows] == [f"trial-{number:04d}" for number in range(20)]


def test_a_row_ends_with_its_onset_else_with_how_it_ended_if_not_well() -> None:
    view, _ = a_view(110)
    for number, state in enumerate(("complete", "stopped", "failed", "running")):
        view.started(f"sound-{number}", parse({}), [record(0, None, 0.5)])
        view.started(f"fallen-{number}", parse({}), [record(epoch, 1, 0.5) for epoch in (0, 1)])
        if state != "running":
            view.ended(f"sound-{number}", state)  # type: ignore[arg-type]
            view.ended(f"fallen-{number}", state)  # type: ignore[arg-type]
    last = [str(cell) for cell in view.table().columns[-1].cells]
    assert last == ["", "collapsed at 2", "stopped", "collapsed at 2", "failed", "collapsed at 2", "", "collapsed at 2"]


@pytest.mark.parametrize(
    ("width", "epochs", "shown"),
    [(109, 3, "3/8"), (110, 3, "━━━━┈┈┈┈┈┈ 3/8"), (110, 0, "┈┈┈┈┈┈┈┈┈┈ 0/8"), (110, 8, "━━━━━━━━━━ 8/8")],
)
def test_a_bar_of_ten_has_the_share_of_epochs_that_are_done_where_there_is_room(
    width: int, epochs: int, shown: str
) -> None:
    view, _ = a_view(width)
    view.restore("a", parse({"epochs": 8}), [record(epoch, None, 0.2) for epoch in range(epochs)], "complete")
    assert list(view.table().columns[5].cells) == [shown]


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


def test_a_phase_without_runs_counts_none_and_one_of_a_single_run_has_its_epochs_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    view = live_view()
    with view:
        view.phase("writing the report")
        assert view._status() == "writing the report  0 s"
        view.phase("one trial", runs=1, epochs=12)
        now = 3.0
        assert view._status() == "one trial  0 of 1 runs ended  3 s"
        view.started("a", parse({"epochs": 12}))
        view.epoch("a", record(0, None, 0.2))
        assert view._status() == "one trial  0 of 1 runs ended  3 s  about 33 s left"
        view.phase("two evaluations", runs=2)
        view.started("b", parse({"epochs": 12}))
        view.epoch("b", record(0, None, 0.2))
        assert view._status() == "two evaluations  0 of 2 runs ended  0 s"


def test_a_run_that_is_as_it_was_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(progress, "onsets", lambda records, of: looks.append(len(records)) or [])
    view, output = a_view(110)
    one, two = record(0, None, 0.2), record(1, None, 0.2)
    again = replace(two, time=two.time + 1)  # its newest epoch was trained anew
    states = ([], "running"), ([one], "running"), ([one], "stopped"), ([one, two], "running"), ([one, again], "running")
    for made, state in states:
        view.restore("trial-0000", parse({}), made, state)  # type: ignore[arg-type]
        view.console.print(view.table())
    assert looks == [0, 1, 2, 2]
    assert ["stopped" in line for line in output.getvalue().splitlines()[1::2]] == [False, False, True, False, False]


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
