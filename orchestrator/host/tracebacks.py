"""What an error of a run leaves behind for whoever looks into its folder."""

from __future__ import annotations

import traceback
from pathlib import Path


def keep_traceback(run_dir: Path, error: Exception, name: str = "error.txt") -> str:
    """Write the traceback into the run folder; returns one line about it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = run_dir / name
    file.write_text("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error} (traceback: {file})"
