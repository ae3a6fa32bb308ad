"""What the rungs of a ladder found, as the journal keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.catalog.attacks import attack_label

RUNG = "rung"


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


def climbed(events: Sequence[Mapping[str, Any]]) -> list[RungResult]:
    """Every rung that was climbed, in order; where more of the same trials were kept later, as it is then."""
    found: dict[tuple[object, ...], RungResult] = {}
    for event in events:
        if event["event"] == RUNG:
            attack, samples, fast = event["attack"], event["samples"], event["fast"]
            accuracies = dict(map(tuple, event["accuracies"]))
            rung = RungResult(attack, samples, fast, accuracies, tuple(event["kept"]))
            found[attack, samples, fast, frozenset(accuracies)] = rung
    return list(found.values())
