"""Keeps MLflow up to date while a study runs, in a thread of its own: an outage stops nothing, and is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from orchestrator.host.interrupt import Interrupt
from orchestrator.records.journal import Journal
from orchestrator.tracking.mirror import Mirror, NotSent
from orchestrator.tracking.server import outage

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 2.0
_RETRY_SECONDS = 15.0
_SILENT_SECONDS = 5.0  # what the end of a study may wait for without a word
_LOOK_SECONDS = 0.2


class Tracker:
    """Keeps MLflow up to date with one study, from `start` to the end of its context; `behind` says what is missing.

    `say` hears of an outage once it lasts, of its end, and of what the end of the study waits for.
    """

    def __init__(self, journal: Journal, uri: str, say: Callable[[str], None], interrupt: Interrupt) -> None:
        self._journal = journal
        self._uri = uri
        self._say = say
        self._interrupt = interrupt
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._failures = 0
        self.behind: str | None = None

    def __enter__(self) -> Tracker:
        return self

    def start(self) -> None:
        """Begin. Not while Ray starts: credentials are out of the environment then."""
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Send what is left; give up quietly if the server is away (`behind` then says why), or at a Ctrl-C.

        Of a study that has not begun to work nothing is sent, unless it has runs of an earlier start.
        """
        self._finished.set()
        if self._thread.ident is None:
            if not self._journal.runs():
                return
            self._thread.start()
        self._thread.join(_SILENT_SECONDS)
        if not self._thread.is_alive():
            return
        missing = self.behind or "it takes long to answer"
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.behind = missing
            return
        asked = self._interrupt.requested
        try:
            self._say("waiting for MLflow to take what is left; Ctrl-C leaves it for later")
            while self._thread.is_alive():
                self._thread.join(_LOOK_SECONDS)
                if self._interrupt.requested and not asked:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.behind = missing

    def _work(self) -> None:
        mirror: Mirror | None = None
        while True:
            last = self._finished.is_set()
            try:
                mirror = mirror or Mirror(self._journal, self._uri)
                mirror.update(ended=last)
            except Exception as error:
                # Whatever the server did, the study goes on and the journal keeps what it could not take.
                logger.debug("tracking is behind", exc_info=True)
                self._hear(str(error) if isinstance(error, NotSent) else outage(error))
            else:
                self._hear(None)
            if last:
                return
            self._finished.wait(_INTERVAL_SECONDS if self.behind is None else _RETRY_SECONDS)

    def _hear(self, problem: str | None) -> None:
        """What an update came to. A server that is slow once is no outage."""
        told = self._failures > 1
        self._failures = 0 if problem is None else self._failures + 1
        self.behind = problem
        if self._finished.is_set():
            return  # who waits for the end is told how it ended
        if problem is not None and self._failures > 1 and not told:
            self._say(f"MLflow does not take what it is sent ({problem}); the study goes on and sends it later")
        elif problem is None and told:
            self._say("MLflow is up to date again")
