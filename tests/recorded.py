"""What runs of the same experiment have in common to the last bit: all that they record but the clocks."""

from __future__ import annotations

from collections.abc import Iterable

from trainers.records import EpochRecord

CLOCKS = ("seconds", "images_per_second")


def timeless(records: Iterable[EpochRecord]) -> list[tuple[int, dict[str, float]]]:
    """Each epoch's number and metrics."""
    return [
        (record.epoch, {name: value for name, value in record.metrics.items() if not name.endswith(CLOCKS)})
        for record in records
    ]
