"""Runs that begin alike: what starts late (DER of multi-step methods, MAIL's weights, AWP) changes nothing before."""

from __future__ import annotations

from collections.abc import Iterable

from trainers.config import Experiment, digest_of


def branching_epochs(experiments: Iterable[Experiment]) -> tuple[int, ...]:
    """After how many epochs something begins to act in any of these runs: there runs may part."""
    starts = {(epoch, run.epochs) for run in experiments for epoch in run.first_epochs.values()}
    return tuple(sorted({epoch for epoch, planned in starts if 0 < epoch < planned}))


def prefix_digest(experiment: Experiment, epochs: int) -> str:
    """Short hash of what acts in the first so many epochs: equal for runs that are one until then, bit for bit.

    A slot that acts later is as good as empty, and what the method is called says nothing.
    """
    content = experiment.identity()
    del content["method"]["name"]
    for slot, first in experiment.first_epochs.items():
        if first >= epochs:
            content["method"][slot] = None
    return digest_of(content)
