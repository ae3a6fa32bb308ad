"""How a run ended, from what its slot said last, its records, and the rule that stopped it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from orchestrator.host import disk
from orchestrator.host.interrupt import Interrupt
from orchestrator.host.shared_files import shows
from orchestrator.records.trials import selected
from orchestrator.slots.messages import Report
from orchestrator.study.proposals import Outcome
from orchestrator.study.stop_rules import Stop
from search_spaces.study import Study
from trainers.config import Experiment
from trainers.records import EpochRecord, read_records


def judge_run(
    report: Report, experiment: Experiment, folder: Path, study: Study, interrupt: Interrupt
) -> Outcome | None:
    """How a run ended, from its last report and its records; None if it goes on later.

    That is so after an interruption, when its processes died, and when the disk is full, which stops the study.
    """
    if report.get("disk_full"):
        interrupt.give_up(disk.full(report["disk_full"]))
        return None
    if report.get("crashed"):
        disk.check_space(folder.parent)
        return None
    if report.get("failure"):
        return Outcome("failed", report["failure"])
    records = _records(folder, experiment.epochs, known=bool(report.get("done")))
    if not records or records[-1].epoch + 1 < experiment.epochs:
        return None if interrupt.requested else Outcome("failed", "it ended before its last epoch")
    chosen = selected(records, study.search.checkpoint)
    objectives = tuple(float(chosen.metrics[name]) for name in study.search.objectives)
    if not all(math.isfinite(value) for value in objectives):
        return Outcome("failed", f"objectives are not finite: {objectives}")
    return Outcome("complete", "", objectives)


def _records(folder: Path, epochs: int, *, known: bool) -> list[EpochRecord]:
    """What the run recorded. Where its last epoch is `known` to have ended, its record is waited for."""
    records: list[EpochRecord] = []

    def whole() -> bool:
        records[:] = read_records(folder)
        return not known or bool(records and records[-1].epoch + 1 >= epochs)

    shows(whole, [folder])
    return records


def stopped_outcome(stop: Stop, records: Sequence[EpochRecord], study: Study) -> Outcome:
    """How a stopped trial counts.

    With `checkpoint: best`, one that overfitted counts with its best epoch so far (some nets recover from a collapse
    and might have had a slightly better one). With `checkpoint: last` it has no last epoch, and one that was pruned
    lost to others: neither has objectives, so neither is confirmed. A group of several workers is an epoch ahead of
    the decision: what follows it is left out.
    """
    seen, names = records[: stop.epoch + 1], study.search.objectives
    counts = study.search.checkpoint == "best" and stop.rule != "prune"
    objectives = tuple(selected(seen, "best").metrics[name] for name in names) if counts else ()
    curve = tuple(record.metrics[names[0]] for record in seen) if len(names) == 1 else ()
    return Outcome("stopped", stop.reason, objectives, curve)
