"""Which parameters of the space mattered for each objective: PED-ANOVA on what Optuna has stored."""

from __future__ import annotations

import math
import warnings

from orchestrator.records.storage import open_database
from search_spaces.addresses import sqlite_file
from search_spaces.study import Study

MIN_TRIALS = 4
Importances = dict[str, dict[str, float]]


def parameter_importances(study: Study, storage_url: str) -> Importances:
    """Objective -> parameter -> share in [0,1] (they sum to 1), most important first over all objectives.

    Empty with fewer than four complete trials, or if no parameter varied. PED-ANOVA (arXiv 2304.10255) asks what sets
    the best trials apart from the rest; with few trials it says little. Raises whatever a database raises that is away.
    """
    file = sqlite_file(storage_url)
    if file is not None and not file.exists():  # Optuna would make it: a report changes nothing
        return {}
    import optuna

    storage = open_database(storage_url)
    try:
        if study.name not in optuna.study.get_all_study_names(storage):
            return {}
        opened = optuna.load_study(study_name=study.name, storage=storage)
        complete = opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        names = {name for trial in complete for name in trial.params}
        varied = {name for name in names if len({str(trial.params.get(name)) for trial in complete}) > 1}
        if len(complete) < MIN_TRIALS or not varied:
            return {}
        with warnings.catch_warnings():
            # Optuna reminds that low targets are explained: hence the minus. And that few trials say little: so do we.
            warnings.simplefilter("ignore")
            found = {
                objective: optuna.importance.get_param_importances(
                    opened, target=lambda trial, place=place: -trial.values[place]
                )
                for place, objective in enumerate(study.search.objectives)
            }
    finally:
        storage.remove_session()
        storage.engine.dispose()
    totals = {name: sum(shares.get(name, 0.0) for shares in found.values()) for name in varied}
    if not all(math.isfinite(total) for total in totals.values()) or not any(totals.values()):
        return {}
    order = sorted(varied, key=lambda name: (-totals[name], name))
    return {objective: {name: shares.get(name, 0.0) for name in order} for objective, shares in found.items()}
