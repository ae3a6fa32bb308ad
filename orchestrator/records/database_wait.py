"""Waiting for Optuna's database: one that is away, frozen or cut off is told of, waited for, in the end given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.host.databases import reason

if TYPE_CHECKING:
    from sqlalchemy import Engine

PATIENCE_SECONDS = 600.0  # a database server that is started again, or its host
_RETRY_SECONDS = 2.0
_SILENT_SECONDS, _LOOK_SECONDS = 20.0, 0.2
_AGAIN = "Optuna's database answers again"
# Everything by which SQLAlchemy has the database's driver wait for the server; the last two give a connection back.
_LEAVING = ("do_rollback", "do_close")
_ASKING = ("connect", "do_ping", "do_execute", "do_executemany", "do_execute_no_params", "do_commit", *_LEAVING)


class DatabaseWait:
    """Connects for SQLAlchemy, as often as it takes, and waits for whatever a server is asked, as long as it takes.

    A server may be frozen, or cut off: a driver that is written in C hears no Ctrl-C until there is an answer. What it
    waits for, `say` hears. It raises ConnectionError after PATIENCE_SECONDS, or once `stopping` says that the user does
    not want to wait.
    """

    def __init__(self, url: str, say: Callable[[str], None], stopping: Callable[[], bool]) -> None:
        self._url, self._say, self._stopping = url, say, stopping
        self._lost: ConnectionError | None = None

    def with_engine(self, engine: Engine) -> None:
        """Let this engine connect and ask for as long as it takes; a file answers, or fails, at once."""
        from sqlalchemy import event

        # Only in connecting, where nothing has begun yet, is trying again no second time.
        event.listen(engine, "do_connect", self.connect)
        for name in _ASKING if engine.dialect.name != "sqlite" else ():
            setattr(engine.dialect, name, partial(self.ask, name, getattr(engine.dialect, name)))

    def connect(self, dialect: Any, _record: Any, words: list[Any], options: dict[str, Any]) -> Any:
        """A connection of the database's own driver."""
        began, told = time.monotonic(), False
        while True:
            try:
                connection = dialect.connect(*words, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                self._bear(began, reason(error), told=told)
                if not told:
                    self._tell(f"is away: {reason(error)}")
                told = True
                time.sleep(_RETRY_SECONDS)
            else:
                if told:
                    self._say(_AGAIN)
                return connection

    def ask(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What one of the `_ASKING` answers; it runs in a thread of its own, which is left behind if there is none."""
        if self._lost is not None:
            if name in _LEAVING:
                return None  # the thread that was left holds the connection: to close it would be to wait
            raise self._lost
        answer: Future[Any] = Future()
        threading.Thread(target=_answer, args=(answer, partial(call, *arguments, **options)), daemon=True).start()
        began, told = time.monotonic(), False
        try:
            while not wait([answer], _LOOK_SECONDS).done:
                silent = time.monotonic() - began > _SILENT_SECONDS
                self._bear(began, "it is silent", told=silent)
                if silent and not told:
                    self._tell(f"has been silent for {_SILENT_SECONDS:g} seconds")
                told = silent
        except BaseException as error:
            self._lost = ConnectionError(str(error))
            raise
        if told:
            self._say(_AGAIN)
        return answer.result()

    def _tell(self, what: str) -> None:
        minutes = PATIENCE_SECONDS / 60
        self._say(f"Optuna's database (search.storage) {what}; waiting for it, at most {minutes:g} minutes")

    def _bear(self, began: float, why: str, *, told: bool) -> None:
        """Raise ConnectionError if this is too long, or if who was told of the waiting has asked to stop."""
        waited = time.monotonic() - began
        if waited > PATIENCE_SECONDS or (told and self._stopping()):
            raise ConnectionError(f"search.storage: {self._url!r} did not answer for {waited / 60:.1f} minutes: {why}")


def _answer(answer: Future[Any], call: Callable[[], Any]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:
        answer.set_exception(error)
