"""Files that another node has just written: shared storage may show them late."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

_PATIENCE_SECONDS, _LOOK_SECONDS = 10.0, 0.2


def shows(look: Callable[[], bool], folders: Collection[Path]) -> bool:
    """Whether `look` finds what was written into `folders`, now or within ten seconds."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
        for folder in folders:
            with suppress(OSError):
                os.listdir(folder)  # a network file system looks again
    return True


def require_files(files: Collection[Path]) -> None:
    """Return when all are there; raises FileNotFoundError with the first that does not appear within ten seconds."""
    if not shows(lambda: all(file.exists() for file in files), {file.parent for file in files}):
        missing = next(file for file in files if not file.exists())
        raise FileNotFoundError(
            errno.ENOENT,
            "a node has written it and it is not seen here: it must lie on storage that all see",
            str(missing),
        )
