"""Processes as the kernel shows them: who descends from whom, and who is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PATIENCE_SECONDS = 600.0


def wait_until(
    condition: Callable[[], bool], what: str, *, unless: Callable[[], str | None] = lambda: None, every: float = 0.02
) -> None:
    """Poll until `condition` holds; fails with the text of `unless` as soon as it has one, or after a long while.

    `every` so many seconds: a condition that asks another program should not take its CPU.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        problem = unless()
        assert problem is None, f"while waiting for {what}: {problem}"
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:.0f} s for {what}"
        time.sleep(every)


def wait_while(
    process: subprocess.Popen[str], condition: Callable[[], bool], what: str, *, every: float = 0.02
) -> None:
    """The same while this process runs; fails with what it said if it ends before."""
    said = lambda: None if process.poll() is None else str(process.communicate())  # noqa: E731
    wait_until(condition, what, unless=said, every=every)


def descendants(pid: int) -> dict[int, str]:
    """Every living process below `pid`: its command line by its id."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # gone in the meantime
        if state != "Z":
            children.setdefault(int(parent), []).append(int(folder.name))
    found: dict[int, str] = {}
    waiting = list(children.get(pid, []))
    while waiting:
        child = waiting.pop()
        found[child] = _command_line(child)
        waiting += children.get(child, [])
    return found


def kill(pid: int) -> None:
    """As the out-of-memory killer and a preempted machine do it."""
    os.kill(pid, signal.SIGKILL)


def wait_for_the_end_of(pids: Iterable[int]) -> None:
    """Until none of these processes lives."""
    left = list(pids)
    wait_until(lambda: not any(_lives(pid) for pid in left), f"the end of the processes {left}")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
