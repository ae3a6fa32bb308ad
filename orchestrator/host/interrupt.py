"""Ctrl-C: once means finish the epoch, save, and stop; twice means stop now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.host.tracebacks import one_line


class StopRequested(Exception):
    """The user asked to stop; what was recorded is kept and the study can be resumed."""


class Interrupt:
    """Whether the user has asked to stop, or something makes it pointless to go on."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._requested = threading.Event()
        self._error: Exception | None = None

    @property
    def requested(self) -> bool:
        """True after the first Ctrl-C, or after `give_up`."""
        return self._requested.is_set()

    def give_up(self, error: Exception) -> None:
        """Stop as after a Ctrl-C; `check` then raises the error. For what can't be raised where it happens."""
        self._error = self._error or error
        if not self.requested:
            self._requested.set()
            self._announce(f"stopping after the current epoch ({one_line(error)}); press Ctrl-C to stop at once")

    def check(self) -> None:
        """Raise StopRequested if the user has asked to stop, or the error that made the study give up."""
        if self._error is not None:
            raise self._error
        if self.requested:
            raise StopRequested

    def receive(self, _signal: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested:
            raise KeyboardInterrupt
        self._requested.set()
        self._announce("stopping after the current epoch; press Ctrl-C again to stop at once")


@contextmanager
def listening(announce: Callable[[str], None]) -> Iterator[Interrupt]:
    """Handle SIGINT and SIGTERM inside the block."""
    interrupt = Interrupt(announce)
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupt.receive) for number in signals]
    try:
        yield interrupt
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
