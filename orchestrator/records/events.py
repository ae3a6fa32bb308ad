"""What a study's journal keeps: one record for each thing that has happened, a JSON line each.

A line is {"event": the name in `EVENTS`, "time": Unix seconds, …the fields}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainers.catalog.attacks import attack_label

State = Literal["running", "complete", "stopped", "failed"]  # of a run, or of a trial
Kind = Literal["trial", "repeat", "confirmation"]  # a repeat is a trial's run with another seed


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that has happened, `time` in Unix seconds."""

    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A driver has begun to work on the study; see `host.environment`."""

    pid: int
    environment: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Joined(Event):
    """That driver is this job of a cluster, by the id of its head: what dead jobs reserved there is given back."""

    cluster: str
    job: str


@dataclass(frozen=True, kw_only=True)
class Interrupted(Event):
    """The driver has stopped before the end of the study."""


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The driver has done all that the study asked for."""


@dataclass(frozen=True, kw_only=True)
class Issued(Event):
    """A run was handed to Tune, for the first time or again: `values` is its point of the space, by path.

    `folder` is relative to the study's; `origin` are the fields of its `Origin`, if other runs computed its beginning.
    """

    key: str
    trial: int
    values: Mapping[str, Any]
    experiment: Mapping[str, Any]
    folder: str
    origin: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Proposed(Issued):
    """A run of a trial; `kind` is trial, or repeat for one with another seed. `seeds` is how many the trial has."""

    kind: Kind
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Confirming(Issued):
    """A chosen trial, trained again with a fresh seed."""


@dataclass(frozen=True, kw_only=True)
class Compared(Event):
    """A run has got to an epoch (from 0) in which it is compared with those of its group that were there before."""

    key: str
    group: str
    epoch: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """A rule stops a run; its epochs (from 0) after this one do not count."""

    key: str
    rule: str
    epoch: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """A run is complete, stopped or failed."""

    key: str
    state: State
    reason: str = ""
    objectives: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """A final attack on a run has ended; `problem` says why it failed, and is empty if it did not."""

    key: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class RungClimbed(Event):
    """A rung of the ladder: robust accuracies (fractions, means over the seeds) by trial, in pairs, the most robust
    first, and which trials it kept.
    """

    attack: str
    samples: int
    fast: bool
    accuracies: Sequence[tuple[int, float]]
    kept: Sequence[int]

    @property
    def by_trial(self) -> dict[int, float]:
        """The accuracies, the highest first."""
        return dict(self.accuracies)

    @property
    def label(self) -> str:
        """For example `CW∞ (fast), n = 512`."""
        return f"{attack_label(self.attack)}{' (fast)' if self.fast else ''}, n = {self.samples}"


EVENTS: dict[str, type[Event]] = {
    "started": Started,
    "joined": Joined,
    "interrupted": Interrupted,
    "finished": Finished,
    "proposed": Proposed,
    "confirming": Confirming,
    "compared": Compared,
    "stopping": Stopped,
    "ended": Ended,
    "evaluated": Evaluated,
    "rung": RungClimbed,
}
_NAMES = {kind: name for name, kind in EVENTS.items()}


def to_line(event: Event) -> str:
    """An event as a line of the journal."""
    return json.dumps({"event": _NAMES[type(event)], **asdict(event)})


def from_line(line: str) -> Event:
    """Inverse of `to_line`, but for tuples, which are lists. Raises ValueError, KeyError or TypeError if it is none."""
    fields = json.loads(line)
    return EVENTS[fields.pop("event")](**fields)
