"""The two tables of a study as plain rows: what was confirmed on the test set, and every trial. No matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from orchestrator.records.constraints import limits, violations
from orchestrator.records.runs import Run
from orchestrator.records.trials import Spread, Trial, trials
from orchestrator.report.curves import curve, trial_onset_text
from orchestrator.report.held_out import objectives
from orchestrator.report.labels import Strengths, epsilon_text, method_label, strengths
from search_spaces.study import Study
from trainers.diagnostics.overfitting import ROBUST_ACCURACY
from trainers.evaluation.result import Protocol

_ROUNDING = 1e-9


@dataclass(frozen=True)
class ResultRow:
    """One configuration, confirmed over seeds under one protocol.

    `accuracies` go by stage of the evaluation and are cumulative; `best` names the stages in which this row is the
    best of its protocol, or within one standard deviation of the best. `gap` is best minus last epoch in held-out
    robust accuracy, what robust overfitting costs; None for runs without records.
    """

    trial: int
    method: str
    strengths: Strengths
    epsilon: str
    protocol: Protocol
    seeds: tuple[int, ...]
    accuracies: Mapping[str, Spread]
    best: frozenset[str] = frozenset()
    gap: Spread | None = None

    @property
    def robust(self) -> Spread:
        """After the last stage."""
        return list(self.accuracies.values())[-1]

    def flat(self) -> dict[str, object]:
        """One line of a CSV; accuracies are fractions."""
        cells: dict[str, object] = {
            "trial": self.trial,
            "method": self.method,
            **asdict(self.strengths),
            "epsilon": self.epsilon,
            "protocol": self.protocol.key,
            "seeds": " ".join(map(str, self.seeds)),
            "n": len(self.seeds),
            "best_last_gap/mean": None if self.gap is None else self.gap.mean,
            "best_last_gap/std": None if self.gap is None else self.gap.deviation,
        }
        for stage, spread in self.accuracies.items():
            cells |= {
                f"{stage}/mean": spread.mean,
                f"{stage}/std": spread.deviation,
                f"{stage}/best": stage in self.best,
            }
        return cells


@dataclass(frozen=True)
class TrialRow:
    """One trial. `values` is its point of the space by path, `objectives` by metric (empty if it does not count).

    Epochs are those of all its seeds; `constraints` is `met` or what it lacks, empty where it has none to meet.
    """

    trial: int
    method: str
    epsilon: str
    values: Mapping[str, Any]
    state: str
    reason: str
    epochs: int
    planned_epochs: int
    objectives: Mapping[str, Spread]
    overfitting: str
    constraints: str = ""

    def flat(self) -> dict[str, object]:
        """One line of a CSV; accuracies are fractions.

        What the space varies goes by its path, with `space.` before it where another column has that name.
        """
        # A dimension may be `epochs`, and a table of rows has whatever name its author likes.
        own = {field.name for field in fields(self)}
        return {
            "trial": self.trial,
            "method": self.method,
            "epsilon": self.epsilon,
            **{f"space.{path}" if path in own else path: value for path, value in self.values.items()},
            "epochs": self.epochs,
            "planned_epochs": self.planned_epochs,
            "state": self.state,
            "reason": self.reason,
            **{name: spread.mean for name, spread in self.objectives.items()},
            **{f"{name}/std": s.deviation for name, s in self.objectives.items() if s.deviation is not None},
            "overfitting": self.overfitting,
            **({"constraints": self.constraints} if self.constraints else {}),
        }


def confirmations(runs: Iterable[Run]) -> list[Run]:
    """The confirmations, without the trials."""
    return [run for run in runs if run.kind == "confirmation"]


def results(runs: Iterable[Run]) -> list[ResultRow]:
    """The evaluated confirmations, seeds averaged within (trial, protocol); protocols apart, most robust first.

    Seeds that were evaluated under different protocols are never averaged: such a trial has several rows.
    """
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in confirmations(runs):
        if run.evaluation is not None:
            groups.setdefault((run.trial, run.evaluation.protocol.key), []).append(run)
    rows = mark_best([_result(group) for group in groups.values()])
    return sorted(rows, key=lambda row: (row.protocol.key, -row.robust.mean, row.trial))


def mark_best(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The same rows, marked where they are within one standard deviation of the best of their protocol."""
    return [_marked(row, [other for other in rows if other.protocol == row.protocol]) for row in rows]


def by_protocol(rows: Iterable[ResultRow]) -> dict[Protocol, list[ResultRow]]:
    """Rows that may be compared with each other."""
    groups: dict[Protocol, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.protocol, []).append(row)
    return groups


def trial_rows(study: Study, runs: Sequence[Run]) -> list[TrialRow]:
    """Every trial, by number."""
    demanded = limits(study, runs)
    return [
        TrialRow(
            trial=trial.number,
            method=method_label(trial.experiment),
            epsilon=epsilon_text(trial.experiment),
            values=trial.values,
            state=trial.state,
            reason=trial.reason,
            epochs=sum(len(run.records) for run in trial.runs),
            planned_epochs=trial.seeds * trial.experiment.epochs,
            objectives=objectives(study, trial),
            overfitting=trial_onset_text(trial),
            constraints=_constraints(study, demanded, trial),
        )
        for trial in trials(runs)
    ]


def _constraints(study: Study, demanded: Mapping[str, float | None], trial: Trial) -> str:
    if not demanded or not trial.objectives:
        return ""
    found = violations(demanded, trial, study.search.checkpoint)
    lacks = [f"{metric} {100 * amount:.2f} points short" for metric, amount in found.items() if amount > 0]
    unknown = [f"{metric} has no baseline" for metric in demanded if metric not in found]
    return ", ".join(lacks + unknown) or "met"


def _result(group: Sequence[Run]) -> ResultRow:
    evaluations = [run.evaluation for run in group if run.evaluation is not None]
    stages = list(evaluations[0].accuracies)
    experiment = group[0].experiment
    return ResultRow(
        trial=group[0].trial,
        method=method_label(experiment),
        strengths=strengths(experiment),
        epsilon=epsilon_text(experiment),
        protocol=evaluations[0].protocol,
        seeds=tuple(sorted(run.experiment.seed for run in group)),
        accuracies={stage: Spread.of([found.accuracies[stage] for found in evaluations]) for stage in stages},
        gap=_gap(group),
    )


def _gap(group: Sequence[Run]) -> Spread | None:
    curves = [curve(run, ROBUST_ACCURACY)[1] for run in group]
    return Spread.of([max(values) - values[-1] for values in curves]) if all(curves) else None


def _marked(row: ResultRow, comparable: Sequence[ResultRow]) -> ResultRow:
    """Mark a row where it is within one standard deviation of the best; a row without rivals is not marked."""
    if len(comparable) < 2:
        return row
    best = set()
    for stage, spread in row.accuracies.items():
        leader = max((other.accuracies[stage] for other in comparable), key=lambda other: other.mean)
        if spread.mean >= leader.mean - (leader.deviation or 0.0) - _ROUNDING:
            best.add(stage)
    return replace(row, best=frozenset(best))
