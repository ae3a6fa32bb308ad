"""A trial: a point of the space, its runs, one a seed, and what they come to together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from orchestrator.records.events import State
from orchestrator.records.runs import Run
from trainers.config import Experiment
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


@dataclass(frozen=True)
class Trial:
    """A trial with those of its runs that were issued, one a seed, that of its first seed first.

    It has failed if a run has, is stopped if one is, and runs until all of its seeds have ended or one ended without
    objectives.
    """

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run of its first seed."""
        return self.runs[0]

    @property
    def number(self) -> int:
        """Optuna's."""
        return self.first.trial

    @property
    def values(self) -> Mapping[str, Any]:
        """Its point of the space, by path."""
        return self.first.values

    @property
    def experiment(self) -> Experiment:
        """Of its first seed."""
        return self.first.experiment

    @property
    def seeds(self) -> int:
        """How many runs it is to have."""
        return self.first.seeds

    @cached_property
    def state(self) -> State:
        """As of a run: running, complete, stopped or failed."""
        states = [run.state for run in self.runs]
        lasts = all(run.objectives for run in self.runs)
        if "running" in states or (len(states) < self.seeds and lasts):
            return "running"
        worst: tuple[State, ...] = ("failed", "stopped")
        return next((state for state in worst if state in states), "complete")

    @property
    def reason(self) -> str:
        """Why it was stopped or has failed; by seed, if it has several."""
        if self.seeds == 1:
            return self.first.reason
        state = self.state
        return "; ".join(
            f"seed {run.experiment.seed}: {run.reason}"
            for run in self.runs
            if run.state == state != "running" and run.reason
        )

    @cached_property
    def objectives(self) -> tuple[float, ...]:
        """Means over the seeds; empty while it runs, and if a run has none."""
        return tuple(spread.mean for spread in self.spreads())

    def spreads(self) -> list[Spread]:
        """Each objective over the seeds; nothing for a trial that does not count."""
        each = [run.objectives for run in self.runs]
        if not all(each) or self.state == "running":
            return []
        return [Spread.of(values) for values in zip(*each, strict=True)]

    def metrics_at(self, checkpoint: str, names: Collection[str]) -> dict[str, float]:
        """These metrics at the epoch that counts, means over the seeds, without those that a seed lacks.

        A run that was stopped counts as it was then: its workers may have ended the epoch that they were in.
        """
        each = [_until_stopped(run) for run in self.runs]
        known = [selected(records, checkpoint).metrics if records else {} for records in each]
        return {name: fmean(metrics[name] for metrics in known) for name in names if all(name in m for m in known)}


def trials(runs: Iterable[Run]) -> list[Trial]:
    """The trials that runs belong to, in the order of their first ones; confirmations belong to none."""
    groups: dict[int, list[Run]] = {}
    for run in runs:
        if run.kind != "confirmation":
            groups.setdefault(run.trial, []).append(run)
    return [Trial(tuple(group)) for group in groups.values()]


def selected(records: Sequence[EpochRecord], checkpoint: str) -> EpochRecord:
    """The epoch that counts: the last one, or the first of the most robust ones on the held-out slice."""
    return records[-1] if checkpoint == "last" else max(records, key=lambda record: record.metrics[ROBUST_ACCURACY])


def _until_stopped(run: Run) -> list[EpochRecord]:
    last = run.stopped_after
    return [record for record in run.records if last is None or record.epoch <= last]
