"""Where Optuna keeps a study: a file in the study's folder, or a database of the user's own."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.host import disk
from orchestrator.host.databases import advice, reason, time_limits
from orchestrator.records.database_wait import DatabaseWait
from search_spaces.addresses import sqlite_address
from search_spaces.study import Study
from trainers.problems import InvalidInput

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


OPTUNA_FILE = "optuna.db"


def storage_url(study: Study, folder: Path) -> str:
    """Optuna's storage of the study in `folder`."""
    return study.search.storage or sqlite_address(folder / OPTUNA_FILE)


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


def open_database(url: str, waiting: DatabaseWait | None = None) -> RDBStorage:
    """Optuna's storage at this address; raises at once whatever a database raises that is away.

    With `waiting`, one that goes away later, or falls silent, is waited for.
    """
    import optuna

    # A server that was started again, or a firewall, has closed what the pool still takes for open.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": time_limits(url)})
    if waiting is not None:
        waiting.with_engine(storage.engine)
    return storage


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
