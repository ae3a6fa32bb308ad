"""Which trials meet the constraints of their study."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.records.runs import Run
from orchestrator.records.seeds import counting, trials
from search_spaces.study import Study


def violations(study: Study, run: Run, runs: Sequence[Run]) -> dict[str, float]:
    """How far a trial, as `seeds.trials` has it, is below each known limit by metric; at most 0 where it is met."""
    if not run.objectives:
        return {}
    metrics = counting(run, study.search.checkpoint)
    return {
        metric: limit - metrics[metric] for metric, limit in limits(study, runs).items()
        if limit is not None and metric in metrics
    }  # fmt: skip


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
        baseline = next((trial for trial in trials(runs) if trial.trial == constraint.baseline), None)
        ended = baseline is not None and baseline.state != "running"
        reached = counting(baseline, study.search.checkpoint) if baseline is not None and ended else {}
        found[metric] = reached[metric] - constraint.minus if metric in reached else None
    return found


def feasible(study: Study, runs: Sequence[Run]) -> list[Run]:
    """The trials that violate nothing; all of them in a study without constraints."""
    return [run for run in trials(runs) if all(amount <= 0 for amount in violations(study, run, runs).values())]
