"""One training run of a study, and what the events of the journal make of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.records.events import Ended, Evaluated, Issued, Kind, Proposed, State, Stopped
from trainers.config import Experiment, parse
from trainers.evaluation.result import EvaluationResult
from trainers.origin import Origin
from trainers.records import EpochRecord

_KINDS: tuple[Kind, ...] = ("trial", "repeat", "confirmation")
# Workers may end an epoch after their run was stopped: so much longer than its longest one its files are looked at.
_LATE_EPOCHS, _LATE_SECONDS = 3, 60.0


@dataclass(frozen=True)
class Run:
    """One training run of a study. `kind` is trial, repeat (of a trial of several seeds, with another) or confirmation.

    `state` is running, complete, stopped (by the rule `stopped_by`; its epochs after `stopped_after` do not count) or
    failed; `values` is its point of the space, by path. Objectives are those of a complete run, or of a stopped one
    whose best epoch counts. `origin` says which of its epochs another run computed; `seeds` is how many runs its trial
    has. `not_evaluated` says why its last evaluation failed, if it did.
    """

    key: str
    kind: Kind
    trial: int
    values: Mapping[str, Any]
    experiment: Experiment
    folder: Path
    state: State = "running"
    reason: str = ""
    objectives: tuple[float, ...] = ()
    stopped_by: str = ""
    stopped_after: int | None = None
    origin: Origin | None = None
    seeds: int = 1
    records: tuple[EpochRecord, ...] = field(default=(), repr=False)
    evaluation: EvaluationResult | None = field(default=None, repr=False)
    not_evaluated: str = ""

    @property
    def own_records(self) -> tuple[EpochRecord, ...]:
        """The records of the epochs that it computed itself."""
        return self.records if self.origin is None else self.records[self.origin.epochs :]

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands among all: keys as text would put trial 10,000 before 9,999, and seed 10 before seed 2."""
        return _KINDS.index(self.kind), self.trial, self.experiment.seed

    def is_settled(self, told: float) -> bool:
        """Whether its files are as they stay unless an event says otherwise: it ended some time after `told`."""
        longest = max((record.metrics.get("epoch/seconds", 0.0) for record in self.records), default=0.0)
        return self.state != "running" and time.time() > told + _LATE_SECONDS + _LATE_EPOCHS * longest


def begun(event: Issued, folder: Path) -> Run:
    """The run of a study in `folder` that was issued, for the first time or again."""
    return Run(
        event.key,
        event.kind if isinstance(event, Proposed) else "confirmation",
        event.trial,
        event.values,
        parse(event.experiment),
        folder / event.folder,
        origin=None if event.origin is None else Origin(**event.origin),
        seeds=event.seeds if isinstance(event, Proposed) else 1,
    )


def changed(run: Run, event: Stopped | Ended | Evaluated) -> Run:
    """The run after what has happened to it."""
    if isinstance(event, Stopped):
        return replace(run, stopped_by=event.rule, stopped_after=event.epoch)
    if isinstance(event, Evaluated):
        return replace(run, not_evaluated=event.problem)
    return replace(run, state=event.state, reason=event.reason, objectives=tuple(event.objectives))


def trial_key(number: int, seed: int = 0) -> str:
    """`trial-0003`; `trial-0003-seed1` is its run with the next seed."""
    return of_seed(f"trial-{number:04d}", seed)


def trial_number(key: str) -> int:
    """The trial that a run with this key belongs to."""
    return int(key.split("-")[1])


def of_seed(name: str, seed: int) -> str:
    """The name of a trial's run: that of the trial for its first seed, `NAME-seed1` for the next."""
    return f"{name}-seed{seed}" if seed else name


def confirmation_key(trial: int, seed: int) -> str:
    """`0003-seed1`."""
    return f"{trial:04d}-seed{seed}"
