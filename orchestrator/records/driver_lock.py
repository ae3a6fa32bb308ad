"""One driver works on a study at a time: who it is, a lock says, for as long as that process lives."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from trainers.problems import InvalidInput

_LOCK_FILE = "lock"
_ATTEMPTS, _SECONDS = 5, 0.1


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Two drivers would both re-issue the same trials: hold a lock for as long as this process lives."""
    with open(folder / _LOCK_FILE, "w") as file:
        try:
            if not _locked(file):
                raise InvalidInput.single(str(folder), "another process is running this study")
        except OSError as error:
            raise InvalidInput.single(
                "--storage", f"{str(folder.parent)!r}: its file system has no locks ({error.strerror}), and a second "
                "driver of a study would not be noticed; mount it with them (Lustre: -o flock; NFS: its lock service) "
                "or name another folder"
            ) from error  # fmt: skip
        yield


def _locked(file: TextIO) -> bool:
    """Take the lock, unless a driver has it; `is_driven` holds it for a moment, each time it looks."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_SECONDS)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def is_driven(folder: Path) -> bool | None:
    """Whether a process holds the study's lock; None where there are no locks."""
    lock = folder / _LOCK_FILE
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
    return False
