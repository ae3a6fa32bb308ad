"""Files that appear whole or not at all, whoever else writes them at the same moment. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_with(file: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Let `write` fill a file, which appears when it is complete; makes its folder. Nothing stays of one that fails.

    It is on disk before it has its name, or a power cut could leave an empty one. Every writer has a file of its own
    until then: a process on a node that was given up may still be at work.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "wb") as opened:
            write(opened)
            opened.flush()
            os.fsync(opened.fileno())
        return temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(file: Path, text: str) -> Path:
    """A text as UTF-8."""
    return write_with(file, lambda opened: opened.write(text.encode()))
