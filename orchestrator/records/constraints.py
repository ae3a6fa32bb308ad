"""Which trials meet the constraints of their study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.records.runs import Run
from orchestrator.records.trials import Trial, trials
from search_spaces.study import Study


def limits(study: Study, runs: Sequence[Run]) -> dict[str, float | None]:
    """What each constraint demands, by metric; None as long as its baseline has not ended, or if it recorded nothing.

    A baseline that does not count itself, for it was stopped or failed, is held to what it reached.
    """
    found: dict[str, float | None] = {}
    for metric, constraint in study.search.constraints.items():
        if constraint.baseline is None:
            found[metric] = constraint.at_least
            continue
        # Starting points are the first trials, in their order.
        baseline = next((trial for trial in trials(runs) if trial.number == constraint.baseline), None)
        ended = baseline is not None and baseline.state != "running"
        reached = baseline.metrics_at(study.search.checkpoint, [metric]) if baseline is not None and ended else {}
        found[metric] = reached[metric] - constraint.minus if metric in reached else None
    return found


def violations(demanded: Mapping[str, float | None], trial: Trial, checkpoint: str) -> dict[str, float]:
    """How far a trial is below each known limit by metric; at most 0 where it is met.

    `demanded` are the `limits`, `checkpoint` says which epoch counts. Empty for a trial that does not count.
    """
    known = {metric: limit for metric, limit in demanded.items() if limit is not None}
    if not (trial.objectives and known):
        return {}
    return {metric: known[metric] - value for metric, value in trial.metrics_at(checkpoint, known).items()}


def feasible(study: Study, runs: Sequence[Run]) -> list[Trial]:
    """The trials that violate nothing; all of them in a study without constraints."""
    demanded, checkpoint = limits(study, runs), study.search.checkpoint
    return [
        trial
        for trial in trials(runs)
        if all(amount <= 0 for amount in violations(demanded, trial, checkpoint).values())
    ]
