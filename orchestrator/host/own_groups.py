"""Helpers of this program out of its process group: a signal to the group (`timeout`, `kill %1`) is for it alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_leaving = False


def _leave() -> None:
    if _leaving:
        os.setpgid(0, 0)


# Runs in every child that Python code prepares before the child becomes another program, as Ray does with its own.
os.register_at_fork(after_in_child=_leave)


@contextmanager
def own_groups() -> Iterator[None]:
    """Children that are forked inside the block, and run Python then, each lead a process group of their own."""
    global _leaving
    _leaving = True
    try:
        yield
    finally:
        _leaving = False
