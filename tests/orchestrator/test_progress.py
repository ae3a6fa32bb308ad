"""What the terminal is told is what happened, to the letter."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.progress import StudyView
from trainers.config import parse

REASON = "RuntimeError: [/gloo/tcp/pair.cc:545] [bold]closed[/bold] by peer"


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_in_an_error_are_printed_as_they_are(terminal: bool) -> None:
    output = io.StringIO()
    view = StudyView(Console(file=output, force_terminal=terminal, width=200, color_system=None))
    with view:
        view.started("trial-0000", parse({}))
        view.ended("trial-0000", "failed", REASON)
    assert REASON in output.getvalue()
