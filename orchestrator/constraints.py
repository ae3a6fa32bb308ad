"""Which trials meet the constraints of their study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.journal import Run
from orchestrator.report.reading import selected
from search_spaces.study import Study


def violations(study: Study, run: Run, runs: Sequence[Run]) -> dict[str, float]:
    """How far a trial is below each limit that is known, by metric; at most 0 where it is met."""
    metrics, trials = _counting(study, run), [other for other in runs if other.kind == "trial"]
    found: dict[str, float] = {}
    for metric, constraint in study.search.constraints.items():
        limit = constraint.at_least
        if constraint.baseline is not None:
            # Starting points are the first trials, in their order.
            reached = next((_counting(study, other) for other in trials if other.trial == constraint.baseline), {})
            limit = reached[metric] - constraint.minus if metric in reached else None
        if limit is not None and metric in metrics:
            found[metric] = limit - metrics[metric]
    return found


def feasible(study: Study, runs: Sequence[Run]) -> list[Run]:
    """The trials that violate nothing; all of them in a study without constraints."""
    trials = [run for run in runs if run.kind == "trial"]
    return [run for run in trials if all(amount <= 0 for amount in violations(study, run, trials).values())]


def _counting(study: Study, run: Run) -> Mapping[str, float]:
    """The metrics of the epoch that counts; none before a trial has ended."""
    record = selected(run, study.search.checkpoint) if run.objectives else None
    return {} if record is None else record.metrics
