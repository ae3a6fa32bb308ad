"""The temporary folder of a private Ray, removed with its process; those of killed processes, by the next one."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_PREFIX, _LOCK = "orc-", "lock"
# The path of a Unix socket has 107 bytes at most; below its folder Ray makes such as this one.
_LONGEST = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")


@cache
def own_folder() -> Path:
    """This process's folder, of its user alone. Its path leaves room for `r`, a folder of Ray, in the names of sockets.

    It holds a lock for as long as the process lives, however that ends.
    """
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if len(os.fsencode(folder / "r")) > _LONGEST:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
    _remove_left_over(folder.parent)
    with suppress(OSError):  # a file system without locks: then nobody removes what is left
        _hold(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _hold(folder: Path) -> None:
    """Lock first and name then: under this name no other process ever finds a file that is not locked yet."""
    unnamed = folder / f"{_LOCK}.new"
    descriptor = os.open(unnamed, os.O_CREAT | os.O_WRONLY, 0o600)  # never closed: the kernel does it
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(folder / _LOCK)


def _remove_left_over(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*/"):
        with suppress(OSError), open(folder / _LOCK, "r+") as file:  # of others: not ours to open
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
