"""Epochs that a run did not compute itself: it is one with another run up to there, and took them over. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trainers.whole_files import write_whole

_ORIGIN_FILE = "origin.json"


@dataclass(frozen=True)
class Origin:
    """Where the first `epochs` epochs of a run were computed.

    `kind` is prefix (a run that began alike), twin (the same run in the same study) or study (the same run in another
    one). `source` names the run as people know it: `trial-0003`, for another study `NAME/trials/0003`.
    """

    kind: Literal["prefix", "twin", "study"]
    source: str
    epochs: int


def write_origin(run_dir: Path, origin: Origin) -> None:
    """Keep it in the run folder."""
    write_whole(run_dir / _ORIGIN_FILE, json.dumps(asdict(origin)) + "\n")


def drop_origin(run_dir: Path) -> None:
    """The run computes everything itself after all."""
    (run_dir / _ORIGIN_FILE).unlink(missing_ok=True)


def read_origin(run_dir: Path) -> Origin | None:
    """Where a run began; None for one that computed everything itself."""
    file = run_dir / _ORIGIN_FILE
    return Origin(**json.loads(file.read_text())) if file.exists() else None
