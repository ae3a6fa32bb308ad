"""Two things timed against one another in one process, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """How many times as long the other side took: the median of the rounds, and the range of their middle half."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Timed:
    """Seconds of our side (median) and the other side's multiples of it, by name."""

    seconds: float
    ratios: dict[str, Ratio]


def in_turns(ours: Callable[[], object], others: dict[str, Callable[[], object]], rounds: int) -> Timed:
    """Call ours and the others in turn, `rounds` times after one round that does not count.

    On a CPU the time is that of this process, whatever else the machine does; on a GPU the clock's, synchronized.
    """
    calls = {"": ours, **others}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            taken = seconds_of(call)
            if round_:
                seconds[name].append(taken)
    return Timed(
        statistics.median(seconds[""]),
        {name: ratio_of([b / a for a, b in zip(seconds[""], seconds[name], strict=True)]) for name in others},
    )


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes: of this process on a CPU; on a GPU by the clock, once the device is done."""
    began = _now()
    call()
    return _now() - began


def ratio_of(values: list[float]) -> Ratio:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Ratio(statistics.median(values), low, high)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
