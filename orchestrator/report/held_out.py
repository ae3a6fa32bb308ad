"""Where trials ended on held-out images, and which of them no other beats in both accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.records.constraints import feasible
from orchestrator.records.pareto import pareto_indices
from orchestrator.records.runs import Run
from orchestrator.records.trials import Spread, Trial, trials
from orchestrator.report.curves import collapsed
from orchestrator.report.labels import epsilon_text, method_label
from search_spaces.study import Study
from trainers.diagnostics.overfitting import CHANCE_ACCURACY, CLEAN_ACCURACY, ROBUST_ACCURACY

_ACCURACIES = (CLEAN_ACCURACY, ROBUST_ACCURACY, CHANCE_ACCURACY)


@dataclass(frozen=True)
class HeldOutPoint:
    """Where a trial that counts ended, on held-out images at the checkpoint that counts; accuracies are fractions.

    `chance` is what always naming the most frequent class would reach. `allowed` says whether the study's constraints
    are met; the front is that of the trials which do.
    """

    trial: int
    method: str
    epsilon: str
    epsilon_value: float
    clean: float
    robust: float
    chance: float
    collapsed: bool
    allowed: bool
    on_front: bool


def held_out_points(study: Study, runs: Sequence[Run]) -> list[HeldOutPoint]:
    """Every trial that counts with both accuracies, also those that are no objective of the study."""
    ended = []
    for trial in trials(runs):
        if not trial.objectives:
            continue
        means = {name: spread.mean for name, spread in objectives(study, trial).items()}
        values = trial.metrics_at(study.search.checkpoint, _ACCURACIES) | means
        if CLEAN_ACCURACY in values and ROBUST_ACCURACY in values:
            ended.append((trial, values[CLEAN_ACCURACY], values[ROBUST_ACCURACY], values.get(CHANCE_ACCURACY, 0.0)))
    allowed = {trial.number for trial in feasible(study, runs)}
    candidates = [(clean, robust) for trial, clean, robust, _ in ended if trial.number in allowed]
    front = {candidates[index] for index in pareto_indices(candidates)}
    return [
        HeldOutPoint(
            trial=trial.number,
            method=method_label(trial.experiment),
            epsilon=epsilon_text(trial.experiment),
            epsilon_value=float(trial.experiment.attack.epsilon),
            clean=clean,
            robust=robust,
            chance=chance,
            collapsed=any(collapsed(run) for run in trial.runs),
            allowed=trial.number in allowed,
            on_front=trial.number in allowed and (clean, robust) in front,
        )
        for trial, clean, robust, chance in ended
    ]


def objectives(study: Study, trial: Trial) -> dict[str, Spread]:
    """Objective -> value over the seeds of a trial that counts; empty for any other."""
    return dict(zip(study.search.objectives, trial.spreads(), strict=False))


def nothing_counts(study: Study, runs: Sequence[Run]) -> str:
    """Why there is no such point: none yet, or, where all trials have ended, how they did."""
    states = Counter(trial.state for trial in trials(runs))
    if states.total() < study.trials or states["running"]:
        return "No trial is complete yet."
    ended = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"No trial has a result that counts: {ended}. The table of all trials says why."
