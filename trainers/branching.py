"""Runs that begin alike: what starts late (DER of multi-step methods, MAIL's weights, AWP) changes nothing before."""

from __future__ import annotations

from collections.abc import Iterable

from trainers.config import Experiment, digest_of

# The slots that may act late.
_LATE = ("weighting", "regularizer", "weight_perturbation")


def first_epochs(experiment: Experiment) -> dict[str, int]:
    """The epoch (0-based) in which each filled slot begins to act; the number of epochs if it never does."""
    chosen = {slot: getattr(experiment.method, slot) for slot in _LATE}
    starts = {slot: float(choice.parameters.get("start", 0.0)) for slot, choice in chosen.items() if choice is not None}
    epochs = experiment.epochs
    return {slot: next((e for e in range(epochs) if e / epochs >= start), epochs) for slot, start in starts.items()}


def branching_epochs(experiments: Iterable[Experiment]) -> tuple[int, ...]:
    """After how many epochs something begins to act in any of these runs: there runs may part."""
    starts = {(epoch, run.epochs) for run in experiments for epoch in first_epochs(run).values()}
    return tuple(sorted({epoch for epoch, planned in starts if 0 < epoch < planned}))


def prefix_digest(experiment: Experiment, epochs: int) -> str:
    """Short hash of what acts in the first so many epochs: equal for runs that are one until then, bit for bit.

    A slot that acts later is as good as empty, and what the method is called says nothing.
    """
    content = experiment.identity()
    del content["method"]["name"]
    for slot, first in first_epochs(experiment).items():
        if first >= epochs:
            content["method"][slot] = None
    return digest_of(content)
