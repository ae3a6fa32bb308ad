"""What a driver makes of signals, of errors that end its study, and of what they say."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.commands.options import plain_console
from orchestrator.host import disk
from orchestrator.host.interrupt import Interrupt, StopRequested
from orchestrator.host.tracebacks import keep_traceback

ASCII_ONLY = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_an_error_that_stops_the_study_is_told_at_once_and_what_the_next_ctrl_c_does() -> None:
    said: list[str] = []
    interrupt = Interrupt(said.append)
    interrupt.give_up(ValueError("[bold] first\nsecond"))
    interrupt.give_up(OSError("what came of it"))
    assert said == ["stopping after the current epoch (ValueError: [bold] first); press Ctrl-C to stop at once"]
    with pytest.raises(ValueError, match="first"):
        interrupt.check()
    with pytest.raises(KeyboardInterrupt):
        interrupt.receive(2, None)


def test_an_error_after_ctrl_c_is_raised_in_the_end_and_not_told_twice() -> None:
    said: list[str] = []
    interrupt = Interrupt(said.append)
    interrupt.receive(2, None)
    with pytest.raises(StopRequested):
        interrupt.check()
    interrupt.give_up(ConnectionError("gone"))
    assert said == ["stopping after the current epoch; press Ctrl-C again to stop at once"]
    with pytest.raises(ConnectionError, match="gone"):
        interrupt.check()


def test_a_full_disk_is_found_behind_what_it_caused_and_odd_errors_end_the_search() -> None:
    class Odd(Exception):
        cause: object = "words"

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    odd = Odd()
    assert not disk.is_full(odd)
    odd.__context__ = full
    assert disk.is_full(odd)
    odd.cause = ValueError()
    assert not disk.is_full(odd)
    one, other = Odd(), Odd()
    one.cause, other.cause = other, one
    assert not disk.is_full(one)


@pytest.mark.parametrize(
    ("said", "line"), [("CUDA error: a\nb\nc", "CUDA error: a"), ("x" * 400, f"{'x' * 300} …"), ("", "")]
)
def test_a_reason_is_one_line_and_its_file_has_the_rest(tmp_path: Path, said: str, line: str) -> None:
    reason = keep_traceback(tmp_path / "run", RuntimeError(said))
    file = tmp_path / "run" / "error.txt"
    assert reason == f"RuntimeError: {line} (traceback: {file})"
    assert file.read_text().rstrip().endswith(f"RuntimeError: {said}" if said else "RuntimeError")


@pytest.mark.parametrize("words", [["methods"], ["sweep", "quickstart", "--dry-run"]])
def test_a_terminal_that_knows_no_greek_shows_question_marks(tmp_path: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    result = subprocess.run(command, cwd=tmp_path, env=ASCII_ONLY, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
    assert b"?" in result.stdout


def test_an_error_is_written_as_it_is_where_text_is_ascii(tmp_path: Path) -> None:
    script = f"""if True:
        from pathlib import Path
        from orchestrator.host.tracebacks import keep_traceback
        keep_traceback(Path({str(tmp_path)!r}), RuntimeError("\\u03b5"))"""
    subprocess.run([sys.executable, "-c", script], env=ASCII_ONLY, check=True)
    assert "RuntimeError: ε" in (tmp_path / "error.txt").read_bytes().decode()


def test_what_verbs_print_has_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    plain_console().print("[bold] :smile: [/gloo/tcp/pair.cc:545]")
    assert capsys.readouterr().out == "[bold] :smile: [/gloo/tcp/pair.cc:545]\n"
