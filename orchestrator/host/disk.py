"""Whether a place can be written, and what to make of a full disk.

That one is no fault of the run that met it: the study stops, and goes on when there is space again.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path

from trainers.problems import InvalidInput

_LEAST_FREE = 1 << 20  # bytes; with less, a process may die before it can say why


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that a disk or a quota is full."""
    seen: list[BaseException] = []  # errors may name each other, or themselves
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
        # Ray keeps what happened in another process in `cause`.
        kept = getattr(error, "cause", None)
        error = (kept if isinstance(kept, BaseException) else None) or error.__cause__ or error.__context__
    return False


def full(where: Path | str) -> OSError:
    """The error of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))


def check_space(folder: Path) -> None:
    """Raise the error of a full disk if next to nothing is free where `folder` is."""
    if shutil.disk_usage(folder).free < _LEAST_FREE:
        raise full(folder)


def check_file(file: Path, option: str) -> None:
    """Raise, before anything is computed, what would keep its result from being written: InvalidInput or OSError."""
    if file.is_dir():
        raise InvalidInput.single(option, f"{str(file)!r}: is a folder; name a file in it")
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file.parent))
