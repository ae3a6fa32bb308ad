"""A full disk is no fault of the run that met it: the study stops, and goes on when there is space again."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path

_LEAST_FREE = 1 << 20  # bytes; with less, a process may die before it can say why


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
        # Ray keeps what happened in another process in `cause`.
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return False


def full(where: Path | str) -> OSError:
    """The error of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))


def check_space(folder: Path) -> None:
    """Raise the error of a full disk if next to nothing is free where `folder` is."""
    if shutil.disk_usage(folder).free < _LEAST_FREE:
        raise full(folder)
