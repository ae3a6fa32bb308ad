"""The plates of the page: each figure with its heading, its caption, its data, and what to say where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.host.databases import reason
from orchestrator.pages.plate import Plate
from orchestrator.records.runs import Run
from orchestrator.records.trials import trials
from orchestrator.report import figures
from orchestrator.report.figure_data import energy_curve_lines, held_out_lines, importance_lines
from orchestrator.report.held_out import HeldOutPoint, nothing_counts
from orchestrator.report.importance import MIN_TRIALS, Importances, parameter_importances
from orchestrator.report.labels import evaluation_epsilon
from search_spaces.study import Study


def plates(study: Study, runs: Sequence[Run], points: Sequence[HeldOutPoint], storage_url: str) -> list[Plate]:
    """All of them, in the order of the page. `points` are those of the runs, `storage_url` is Optuna's storage."""
    return [
        _energy_curves(study, runs),
        _pareto_front(study, runs, points),
        _accuracy_over_epsilon(study, runs, points),
        _parameter_importance(study, runs, storage_url),
    ]


def _energy_curves(study: Study, runs: Sequence[Run]) -> Plate:
    one_line = "One line a trial" + (", that of its first seed" if study.search.seeds > 1 else "")
    return Plate(
        "energy_curves",
        "Energy and robustness during training",
        "Top: mean ΔE(x) = E(x) − E(x*) on fixed training images, x* from PGD-10 at the training ε (symmetric "
        "logarithm beyond ±1 where values demand it). Bottom: accuracy on held-out images under PGD-10 at "
        f"ε = {evaluation_epsilon(runs)}. {one_line}. Markers with a dark edge: the epoch in which overfitting sets "
        "in, by robust accuracy below half of its best (catastrophic) or by a steep fall of ΔE(x) with rising robust "
        "error (robust); filled if a second sign confirms it. Epochs count from 1.",
        figures.energy_curves(study, runs),
        energy_curve_lines(runs),
        "No epoch has been recorded yet.",
    )


def _pareto_front(study: Study, runs: Sequence[Run], points: Sequence[HeldOutPoint]) -> Plate:
    barred = ", ".join(str(point.trial) for point in points if not point.allowed)
    not_chosen = f" Not meeting search.constraints, and never chosen: {barred}." if barred else ""
    return Plate(
        "pareto_front",
        "Clean against robust accuracy",
        f"Held-out accuracy at the {study.search.checkpoint} epoch of trials that count, clean and under PGD-10 at "
        f"ε = {evaluation_epsilon(runs)}; numbers are trials. Hollow: catastrophic overfitting set in."
        f"{_left_out(runs, points)}{not_chosen}",
        figures.pareto_front(runs, points),
        held_out_lines(points),
        nothing_counts(study, runs),
    )


def _accuracy_over_epsilon(study: Study, runs: Sequence[Run], points: Sequence[HeldOutPoint]) -> Plate:
    one_epsilon = "Trials that count have one training ε only."
    return Plate(
        "accuracy_over_epsilon",
        "Robust accuracy over the training ε",
        f"Held-out accuracy under PGD-10 at ε = {evaluation_epsilon(runs)}, whatever the training ε, at the "
        f"{study.search.checkpoint} epoch; a point a trial that counts, lines through the means at each ε. Hollow: "
        f"catastrophic overfitting set in.{_left_out(runs, points)}",
        figures.accuracy_over_epsilon(study, runs, points),
        held_out_lines(points),
        one_epsilon if points else nothing_counts(study, runs),
    )


def _parameter_importance(study: Study, runs: Sequence[Run], storage_url: str) -> Plate:
    importances, unread = _importances(study, storage_url)
    # A stopped trial may count with its best epoch; Optuna knows what it told of complete ones only.
    complete = sum(trial.state == "complete" for trial in trials(runs))
    return Plate(
        "parameter_importance",
        "Parameter importance",
        f"PED-ANOVA over the {complete} complete trials: how far the values of the best trials depart from those of "
        "all. Shares of one objective sum to 100 %. With few trials they say little.",
        figures.parameter_importance(importances),
        importance_lines(importances),
        _no_importances(complete, unread),
    )


def _left_out(runs: Sequence[Run], points: Sequence[HeldOutPoint]) -> str:
    tried = trials(runs)
    missing = len(tried) - len(points)
    return f" {missing} of {len(tried)} trials have no result that counts: not shown." if missing else ""


def _importances(study: Study, storage_url: str) -> tuple[Importances, str]:
    """What can be said from Optuna's storage, and why it can't be read, if so."""
    try:
        return parameter_importances(study, storage_url), ""
    except Exception as error:
        # The user's own database may be away, or its driver not installed here: the other plates need neither.
        return {}, reason(error)


def _no_importances(complete: int, unread: str) -> str:
    if complete < MIN_TRIALS:
        return f"Needs at least {MIN_TRIALS} complete trials; there are {complete}."
    if unread:
        return f"Optuna's storage (search.storage) can't be read: {unread}. Write the report again when it can."
    return "No parameter varied, or none set the best trials apart."
