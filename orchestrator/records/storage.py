"""Where Optuna keeps a study: a file in the study's folder, or a database of the user's own."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.host import disk
from orchestrator.host.databases import advice, reason, time_limits
from search_spaces.study import Study
from trainers.problems import InvalidInput

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

PATIENCE_SECONDS = 600.0  # a database server that is started again, or its host
_RETRY_SECONDS = 2.0
_SILENT_SECONDS, _LOOK_SECONDS = 20.0, 0.2
_AGAIN = "Optuna's database answers again"
# Everything by which SQLAlchemy has the database's driver wait for the server; the last two give a connection back.
_LEAVING = ("do_rollback", "do_close")
_ASKING = ("connect", "do_ping", "do_execute", "do_executemany", "do_execute_no_params", "do_commit", *_LEAVING)


def storage_url(study: Study, folder: Path) -> str:
    """Optuna's storage of the study in `folder`."""
    return study.search.storage or f"sqlite:///{folder / 'optuna.db'}"


def check_is_ours(study: Study, identity: str | None, trials: Collection[int]) -> None:
    """Raise InvalidInput if the user's own database can't be opened, or knows this study otherwise than its folder.

    `identity` is the folder's, None if it is a new one; `trials` are the numbers of those that its journal has.
    """
    if study.search.storage is None:
        return
    from optuna.trial import TrialState

    storage = _opened(study.search.storage)
    try:
        number = storage.get_study_id_from_name(study.name)
        holder = storage.get_study_user_attrs(number).get("identity", identity)
        ended = storage.get_all_trials(number, deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    except KeyError:
        return  # of that name there is none
    finally:
        storage.engine.dispose()
    if holder != identity:
        raise InvalidInput.single("search.storage", of_another_folder(study))
    missing = sorted({trial.number for trial in ended} - set(trials))
    if missing:
        raise InvalidInput.single(
            "search.storage",
            f"{study.search.storage!r} has results of {len(missing)} trials of {study.name!r} that this folder lacks "
            f"(the first is trial {missing[0]}): it is a copy from before them; go on in the folder that has them, or "
            "copy that one again",
        )


def of_another_folder(study: Study) -> str:
    """What to say of a study that is in the database already."""
    url = study.search.storage
    return (
        f"{url!r} holds a study {study.name!r} of another folder: go on in that one, or choose another name "
        "(name=OTHER); if its folder is gone, delete it there: "
        f"{shlex.join(['optuna', '--storage', str(url), 'delete-study', '--study-name', study.name])}"
    )


def _opened(url: str) -> RDBStorage:
    try:
        return open_database(url)
    except Exception as error:
        raise InvalidInput.single("search.storage", f"{url!r} can't be opened: {advice(error)}") from error


def open_database(
    url: str, say: Callable[[str], None] | None = None, stopping: Callable[[], bool] = bool
) -> RDBStorage:
    """Optuna's storage at this address; raises at once whatever a database raises that is away.

    With `say`, one that goes away later, or falls silent, is waited for, which `say` hears: ConnectionError after
    `PATIENCE_SECONDS`, or once `stopping` says that the user does not want to wait.
    """
    import optuna
    from sqlalchemy import event

    # A server that was started again, or a firewall, has closed what the pool still takes for open.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": time_limits(url)})
    if say is not None:
        patience, dialect = _Patience(url, say, stopping), storage.engine.dialect
        # Only here, where nothing has begun yet, is trying again no second time.
        event.listen(storage.engine, "do_connect", patience.connect)
        for name in _ASKING if dialect.name != "sqlite" else ():
            setattr(dialect, name, partial(patience.ask, name, getattr(dialect, name)))
    return storage


class _Patience:
    """Connects for SQLAlchemy, as often as it takes, and waits for whatever a server is asked, as long as it takes.

    A server may be frozen, or cut off: a driver that is written in C hears no Ctrl-C until there is an answer.
    """

    def __init__(self, url: str, say: Callable[[str], None], stopping: Callable[[], bool]) -> None:
        self._url, self._say, self._stopping = url, say, stopping
        self._lost: ConnectionError | None = None

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


@contextmanager
def explained(study: Study) -> Iterator[None]:
    """What a database of the user's own raises inside comes out as a ConnectionError that names it."""
    try:
        yield
    except Exception as error:
        if study.search.storage is None or disk.is_full(error) or not _is_of_a_database(error):
            raise
        message = f"search.storage: {study.search.storage!r} failed: {reason(error)}"
        raise ConnectionError(message) from error


def _is_of_a_database(error: Exception) -> bool:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, (StorageInternalError, SQLAlchemyError))
