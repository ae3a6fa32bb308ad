"""What runs have in common is trained once: the first of them leaves it, the others go on from its checkpoint.

A store is a folder of prefixes. `0012-DIGEST/` holds 12 epochs as a run folder does; see `branching.prefix_digest`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainers import checkpoint
from trainers.branching import prefix_digest
from trainers.config import Experiment
from trainers.origin import Origin, read_origin, write_origin
from trainers.problems import InvalidInput
from trainers.records import EpochRecord, append_record, read_records

if TYPE_CHECKING:
    from trainers.ranks import Ranks


@dataclass(frozen=True)
class Sharing:
    """Where the prefixes of a study lie, and after how many epochs a run leaves one there."""

    store: Path
    epochs: tuple[int, ...]


def take_over(source: Path, run_dir: Path, experiment: Experiment, origin: Origin) -> bool:
    """Copy the first epochs of the run in `source`: their records, the checkpoints to keep, and the origin.

    The checkpoints become the experiment's own. False, with nothing written, unless all of them are whole and of a run
    that is one with the experiment up to there, and every record is there. What a kill cuts short is done again, or
    goes on from the newest checkpoint that was copied: the best comes first, the others in their order.
    """
    last = origin.epochs - 1
    wanted = [epoch for epoch in range(last) if experiment.keeps(epoch)]
    try:
        best = checkpoint.load(checkpoint.best_folder(source))
        kept = [checkpoint.load(checkpoint.epoch_folder(source, epoch)) for epoch in (*wanted, last)]
    except InvalidInput:  # broken, missing, or of a version whose experiments had other fields
        return False
    records = read_records(source)[: origin.epochs]
    if [record.epoch for record in records] != list(range(origin.epochs)) or best.record.epoch > last:
        return False
    if prefix_digest(kept[-1].experiment, origin.epochs) != prefix_digest(experiment, origin.epochs):
        return False
    known = {record.epoch for record in read_records(run_dir)}
    append_record(run_dir, *(record for record in records if record.epoch not in known))
    checkpoint.copy(best, checkpoint.best_folder(run_dir), experiment)
    write_origin(run_dir, origin)
    for found in kept:
        checkpoint.copy(found, checkpoint.epoch_folder(run_dir, found.record.epoch), experiment)
    return True


def begin(experiment: Experiment, run_dir: Path, store: Path) -> Origin | None:
    """Give a run that has no whole checkpoint yet the longest prefix that fits it; returns where that was trained.

    A prefix whose files are not whole is removed: the next run that gets there leaves it again.
    """
    for prefix in sorted(store.glob("[0-9]*"), reverse=True):
        epochs, _, digest = prefix.name.partition("-")
        if digest == prefix_digest(experiment, int(epochs)):
            trained = read_origin(prefix)
            if trained is not None and take_over(prefix, run_dir, experiment, trained):
                return trained
            shutil.rmtree(prefix)
    return None


def leave(experiment: Experiment, run_dir: Path, sharing: Sharing, source: str) -> None:
    """Store the prefixes that nobody has stored and whose checkpoint this run has just now.

    Each appears whole or not at all. Of two runs that do it at once one is the first, and the other's is as good. A run
    that got past these epochs without leaving them, as where the disk was full, does so later only while none of its
    later epochs is the best: the checkpoint of the best before is gone then, and other runs train these epochs again.
    """
    for epochs in sharing.epochs:
        name = f"{epochs:04d}-{prefix_digest(experiment, epochs)}"
        target, staging = sharing.store / name, sharing.store / f".{name}-{source}"
        shutil.rmtree(staging, ignore_errors=True)  # what a kill left
        if target.exists() or not checkpoint.epoch_folder(run_dir, epochs - 1).exists():
            continue
        if take_over(run_dir, staging, experiment, Origin("prefix", source, epochs)):
            try:
                staging.rename(target)
            except OSError:
                if not target.exists():
                    raise
        shutil.rmtree(staging, ignore_errors=True)


def fit_and_leave(
    experiment: Experiment, run_dir: Path, sharing: Sharing, source: str, *, ranks: Ranks
) -> Iterator[EpochRecord]:
    """`fit`, leaving prefixes for runs to come; `source` is what those call this run."""
    from trainers.loop import fit  # here, for drivers find prefixes without PyTorch

    share = partial(leave, experiment, run_dir, sharing, source)
    ranks.on_first(share)  # again, for a kill may have come before it was done
    for record in fit(experiment, run_dir, ranks=ranks):
        if record.epoch + 1 in sharing.epochs:
            ranks.on_first(share)
        yield record
