"""Which trials meet the constraints of their study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.journal import Run
from orchestrator.report.reading import counting
from orchestrator.seeds import trials
from search_spaces.study import Study


def violations(study: Study, run: Run, runs: Sequence[Run]) -> dict[str, float]:
    """How far a trial, as `seeds.trials` has it, is below each known limit by metric; at most 0 where it is met."""
    metrics, known = _counting(study, run), trials(runs)
    found: dict[str, float] = {}
    for metric, constraint in study.search.constraints.items():
        limit = constraint.at_least
        if constraint.baseline is not None:
            # Starting points are the first trials, in their order.
            reached = next((_counting(study, other) for other in known if other.trial == constraint.baseline), {})
            limit = reached[metric] - constraint.minus if metric in reached else None
        if limit is not None and metric in metrics:
            found[metric] = limit - metrics[metric]
    return found


def feasible(study: Study, runs: Sequence[Run]) -> list[Run]:
    """The trials that violate nothing; all of them in a study without constraints."""
    return [run for run in trials(runs) if all(amount <= 0 for amount in violations(study, run, runs).values())]


def _counting(study: Study, run: Run) -> Mapping[str, float]:
    """The metrics of the epoch that counts; none before a trial has ended."""
    return counting(run, study.search.checkpoint) if run.objectives else {}
