"""What the terminal is told is what happened, to the letter."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.study.progress import StudyView
from tests.orchestrator.curves import records
from tests.orchestrator.made_up import record
from trainers.config import apply_values, parse

REASON = "RuntimeError: [/gloo/tcp/pair.cc:545] [bold]closed[/bold] by peer"


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_in_an_error_are_printed_as_they_are(terminal: bool) -> None:
    output = io.StringIO()
    view = StudyView(Console(file=output, force_terminal=terminal, width=200, color_system=None))
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
