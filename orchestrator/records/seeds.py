"""A trial of several seeds: one run each, and what they come to together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from orchestrator.records.runs import Run
from trainers.diagnostics.overfitting import ROBUST_ACCURACY
from trainers.records import EpochRecord


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and the sample standard deviation (n - 1), as fractions; one seed has no deviation."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value per seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        """In percent: `45.37 ± 0.41`."""
        deviation = "" if self.deviation is None else f" ± {100 * self.deviation:.2f}"
        return f"{100 * self.mean:.2f}{deviation}"


def trials(runs: Iterable[Run]) -> list[Run]:
    """One run a trial, that of its first seed, with the state, the reason and the objectives of the trial.

    Objectives are means over the seeds, as long as every run has them. A trial has failed if a run has, is stopped if
    one is, and runs until all of its seeds have ended or one ended without objectives.
    """
    groups: dict[int, list[Run]] = {}
    for run in runs:
        if run.kind in ("trial", "repeat"):
            groups.setdefault(run.trial, []).append(run)
    return [_together(group) for group in groups.values()]


def _together(runs: Sequence[Run]) -> Run:
    first = runs[0]
    if first.seeds == 1:
        return first
    ended = [run for run in runs if run.state != "running"]
    if len(ended) < len(runs) or (len(ended) < first.seeds and all(run.objectives for run in ended)):
        return replace(first, state="running", reason="", objectives=(), over_seeds=tuple(runs))
    states = [run.state for run in ended]
    state = next((state for state in ("failed", "stopped") if state in states), "complete")
    reasons = [f"seed {run.experiment.seed}: {run.reason}" for run in ended if run.state == state and run.reason]
    each = [run.objectives for run in runs]
    objectives = tuple(map(fmean, zip(*each, strict=True))) if all(each) else ()
    return replace(first, state=state, reason="; ".join(reasons), objectives=objectives, over_seeds=tuple(runs))


def spreads(trial: Run) -> list[Spread]:
    """Each objective of a trial over its seeds; nothing for one that does not count."""
    if not trial.objectives:
        return []
    each = [run.objectives for run in trial.over_seeds or (trial,)]
    return [Spread.of(values) for values in zip(*each, strict=True)]


def selected(records: Sequence[EpochRecord], rule: str) -> EpochRecord:
    """The epoch that counts: the last one, or the first of the most robust ones on the held-out slice."""
    return records[-1] if rule == "last" else max(records, key=lambda record: record.metrics[ROBUST_ACCURACY])


def counting(trial: Run, rule: str, names: Collection[str]) -> dict[str, float]:
    """These metrics at the epoch that counts, means over the seeds of a trial, without those that a seed lacks.

    A run that was stopped counts as it was then: its workers may have ended the epoch that they were in.
    """
    each = [_until_stopped(run) for run in trial.over_seeds or (trial,)]
    known = [selected(records, rule).metrics if records else {} for records in each]
    return {name: fmean(metrics[name] for metrics in known) for name in names if all(name in m for m in known)}


def _until_stopped(run: Run) -> list[EpochRecord]:
    last = run.stopped_after
    return [record for record in run.records if last is None or record.epoch <= last]
