"""Whose run a folder holds, who may write into it, and what is kept there of an epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers import checkpoint
from trainers.checkpoint import Checkpoint
from trainers.config import Experiment
from trainers.diagnostics.overfitting import ROBUST_ACCURACY
from trainers.problems import InvalidInput
from trainers.records import EpochRecord, append_record, read_records
from trainers.whole_files import write_whole

if TYPE_CHECKING:
    from torch import nn

EXPERIMENT_FILE = "experiment.yaml"
_IDENTITY_FILE, _WRITER_FILE = "digest.json", "writer.json"


class TakenOver(OSError):
    """Another process trains this run now; this one must not write into its folder any more."""


def claim(experiment: Experiment, run_dir: Path, resume: bool, writer: str) -> None:
    """Make the run folder this experiment's, and `writer` who writes into it. Raises InvalidInput if it may not be."""
    identity, digest = run_dir / _IDENTITY_FILE, experiment.digest()
    held = held_digest(run_dir) if identity.exists() else None
    if held is not None and (held != digest or not resume):
        what = "another experiment" if held != digest else "this experiment already"
        raise InvalidInput.single(str(run_dir), f"holds {what} (digest {held}); choose another folder")
    write_whole(run_dir / EXPERIMENT_FILE, experiment.to_yaml())
    if held is None:
        write_whole(identity, json.dumps({"digest": digest}) + "\n")
    write_whole(run_dir / _WRITER_FILE, json.dumps({"writer": writer}) + "\n")


def left_behind(run_dir: Path) -> tuple[Checkpoint | None, dict[int, EpochRecord]]:
    """What a run left behind: its newest whole checkpoint, and the records of its epochs, maybe of later ones too."""
    return checkpoint.latest(run_dir), {record.epoch: record for record in read_records(run_dir)}


def keep(
    run_dir: Path, writer: str, experiment: Experiment, model: nn.Module, state: Mapping[str, Any],
    record: EpochRecord, recorded: Mapping[int, EpochRecord],
) -> None:  # fmt: skip
    """Checkpoint first: an epoch that is recorded is never lost."""
    if json.loads((run_dir / _WRITER_FILE).read_text())["writer"] != writer:
        raise TakenOver(f"{run_dir} is trained by another process now")
    folder = checkpoint.save(run_dir, experiment, model, state, record)
    record_epoch(run_dir, folder, record, recorded)


def record_epoch(run_dir: Path, folder: Path, record: EpochRecord, recorded: Mapping[int, EpochRecord]) -> None:
    """Mark the checkpoint in `folder` if its epoch is the best so far, and write its record unless it stands there."""
    before = (other.metrics[ROBUST_ACCURACY] for epoch, other in recorded.items() if epoch < record.epoch)
    if all(record.metrics[ROBUST_ACCURACY] > accuracy for accuracy in before):
        checkpoint.mark_best(run_dir, folder)
    if record.epoch not in recorded:
        append_record(run_dir, record)


def held_digest(run_dir: Path) -> str:
    """Of the experiment whose run a folder holds. Raises FileNotFoundError if none, InvalidInput if that is broken."""
    identity = run_dir / _IDENTITY_FILE
    try:
        return str(json.loads(identity.read_text())["digest"])
    except (ValueError, KeyError, TypeError):
        raise InvalidInput.single(
            str(identity),
            "is broken: it says whose run this folder holds; choose another folder, or remove the file if the run is "
            f"that of {EXPERIMENT_FILE} beside it",
        ) from None
