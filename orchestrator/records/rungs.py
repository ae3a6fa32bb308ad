"""Which rung is which, and what each found, from the journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.records.events import Event, RungClimbed

Identity = tuple[str, int, bool, frozenset[int]]


def rung_identity(attack: str, samples: int, fast: bool, trials: Iterable[int]) -> Identity:
    """Two climbs with the same attack of the same trials are one rung, however many it kept."""
    return attack, samples, fast, frozenset(trials)


def climbed(events: Sequence[Event]) -> dict[Identity, RungClimbed]:
    """Every rung that was climbed, in order; where more of the same trials were kept later, as it is then."""
    rungs = (event for event in events if isinstance(event, RungClimbed))
    return {rung_identity(rung.attack, rung.samples, rung.fast, rung.by_trial): rung for rung in rungs}
