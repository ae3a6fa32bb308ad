"""What an error of a run leaves behind for whoever looks into its folder."""

from __future__ import annotations

import traceback
from pathlib import Path

from trainers.whole_files import write_whole

_LONGEST = 300  # characters


def keep_traceback(run_dir: Path, error: Exception, name: str = "error.txt") -> str:
    """Write the traceback into the run folder; returns one line about it."""
    file = write_whole(run_dir / name, "".join(traceback.format_exception(error)))
    return f"{one_line(error)} (traceback: {file})"


def one_line(error: BaseException) -> str:
    """What kind of error it is, and the beginning of what it says: those of CUDA and of PyTorch have pages."""
    text = str(error).strip()
    first = text.partition("\n")[0]
    shown = first if len(first) <= _LONGEST else f"{first[:_LONGEST]} …"
    return f"{type(error).__name__}: {shown}"
