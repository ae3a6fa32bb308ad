"""What the rungs of a ladder found, as the journal keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.records.events import Event, RungClimbed
from trainers.catalog.attacks import attack_label


@dataclass(frozen=True)
class RungResult:
    """What a rung found: robust accuracies (fractions, means over the seeds) by trial, the kept ones first."""

    attack: str
    samples: int
    fast: bool
    accuracies: Mapping[int, float]
    kept: tuple[int, ...]

    @property
    def label(self) -> str:
        """For example `CW∞ (fast), n = 512`."""
        return f"{attack_label(self.attack)}{' (fast)' if self.fast else ''}, n = {self.samples}"


def climbed(events: Sequence[Event]) -> list[RungResult]:
    """Every rung that was climbed, in order; where more of the same trials were kept later, as it is then."""
    found: dict[tuple[object, ...], RungResult] = {}
    for event in events:
        if isinstance(event, RungClimbed):
            accuracies = dict(event.accuracies)
            rung = RungResult(event.attack, event.samples, event.fast, accuracies, tuple(event.kept))
            found[event.attack, event.samples, event.fast, frozenset(accuracies)] = rung
    return list(found.values())
