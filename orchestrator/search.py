"""Ray Tune asks Optuna: an ask/tell Searcher whose only state is the Optuna storage.

Ray's own `OptunaSearch` loses trials that a dead driver left running, proposes the same points again in a new process
and keeps failed objectives running for ever. Here a proposal is a function of (study seed, trial number, history):
a killed and resumed study proposes what an uninterrupted one would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial, TrialState
from ray.tune.search import Searcher

from search_spaces.space import suggest
from search_spaces.study import Search, Study

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: complete (with its objectives), stopped or failed (with the reason).

    A stopped trial has objectives where its best epoch counts all the same; Optuna hears of them only once complete.
    `curve` is the objective of a stopped trial epoch by epoch, where the study has one: Optuna knows no intermediate
    values of studies with two, and its TPE fails on such.
    """

    state: str
    reason: str = ""
    objectives: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()


Propose = Callable[[int, Mapping[str, Any]], dict[str, Any]]
Judge = Callable[[int, Mapping[str, Any]], Outcome | None]
Ended = Callable[[int, Outcome], None]
Decided = Callable[[int], Outcome | None]
_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def open_storage(url: str, study: Study) -> optuna.Study:
    """Open or create the Optuna study. Raises ValueError if it was made with other objectives."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["maximize"] * len(study.search.objectives)
    opened = optuna.create_study(
        study_name=study.name,
        storage=optuna.storages.RDBStorage(url),
        directions=directions,
        load_if_exists=True,
    )
    wanted = list(study.search.objectives)
    held = opened.user_attrs.get("objectives")
    if held is None:
        opened.set_user_attr("objectives", wanted)
        for point in study.search.start:
            opened.enqueue_trial(point, skip_if_exists=True)
    elif held != wanted:
        raise ValueError(f"the stored study has the objectives {held}, not {wanted}")
    return opened


def make_sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """A fresh sampler for one proposal, seeded by (study seed, trial number)."""
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.startup_trials)
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    if search.sampler == "grid":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _Grid(seed=seed)
    # A low-discrepancy sequence is one sequence: it keeps the study's seed.
    return optuna.samplers.QMCSampler(seed=search.seed, scramble=True)


class _Grid(optuna.samplers.BruteForceSampler):
    def after_trial(self, *_arguments: Any) -> None:
        """Nothing: at the end of the grid Optuna's would stop Optuna's own loop, and fail where that is not running."""


class DriverOnly:
    """Belongs to the driver's process. Tune pickles its own snapshot for `Tuner.restore`, which we do not use: the
    state of a study is its Optuna storage and its journal. In that snapshot such an object is None.
    """

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


class StudySearcher(DriverOnly, Searcher):
    """Proposes trials to Tune until the study's total is reached, and tells Optuna how they ended.

    `propose(number, values)` turns a point of the space into Tune's trial configuration, `judge(number, last report)`
    says how it ended, `ended(number, outcome)` is told afterwards. Trials found RUNNING when the
    search starts were left by a dead driver: they are issued again under their own number, unless `decided(number)`
    knows that they were stopped. There must be one driver.
    """

    def __init__(
        self, study: Study, storage_url: str, propose: Propose, judge: Judge, ended: Ended, decided: Decided
    ) -> None:
        objectives = list(study.search.objectives)
        super().__init__(metric=objectives, mode=["max"] * len(objectives))
        self._study = study
        self._propose = propose
        self._judge = judge
        self._ended = ended
        self._decided = decided
        self._optuna = open_storage(storage_url, study)
        self._running: dict[str, int] = {}
        unfinished = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._orphans = [trial.number for trial in unfinished]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's question: the next configuration, or FINISHED."""
        while self._orphans:
            number = self._orphans.pop(0)
            stored = self._optuna.trials[number]
            try:
                values = suggest(self._study.space, FixedTrial(stored.params, number))
            except ValueError:
                self._tell(number, Outcome("failed", "the driver died while this trial was being proposed"))
                continue
            outcome = self._decided(number)
            if outcome is not None:
                self._tell(number, outcome)
                continue
            if stored.user_attrs.get("attempts", 0) >= MAX_ATTEMPTS:
                self._tell(number, Outcome("failed", f"given up after {MAX_ATTEMPTS} attempts"))
                continue
            return self._issue(trial_id, number, values)
        trials = self._optuna.get_trials(deepcopy=False)
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        if len(trials) - len(waiting) >= self._study.search.trials:
            return str(Searcher.FINISHED)
        self._optuna.sampler = make_sampler(self._study.search, waiting[0] if waiting else len(trials))
        trial = self._optuna.ask()
        return self._issue(trial_id, trial.number, suggest(self._study.space, trial))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: intermediate values go to the records, not to Optuna."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended; one that was only interrupted stays RUNNING and is issued again."""
        number = self._running.pop(trial_id, None)
        if number is None:
            return
        outcome = self._judge(number, {"failure": "its processes died"} if error or result is None else result)
        if outcome is not None:
            self._tell(number, outcome)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the storage is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a fresh searcher on the same storage is the restored one."""

    def _issue(self, trial_id: str, number: int, values: dict[str, Any]) -> dict[str, Any]:
        attempts = self._optuna.trials[number].user_attrs.get("attempts", 0)
        self._note(number, "attempts", attempts + 1)
        self._running[trial_id] = number
        return self._propose(number, values)

    def _tell(self, number: int, outcome: Outcome) -> None:
        self._note(number, "reason", outcome.reason)
        for epoch, value in enumerate(outcome.curve):
            self._optuna._storage.set_trial_intermediate_value(self._storage_id(number), epoch, value)
        values = list(outcome.objectives) if outcome.state == "complete" else None
        self._optuna.tell(number, values, state=_STATES[outcome.state], skip_if_finished=True)
        self._ended(number, outcome)

    def _note(self, number: int, key: str, value: Any) -> None:
        self._optuna._storage.set_trial_user_attr(self._storage_id(number), key, value)

    def _storage_id(self, number: int) -> int:
        # Optuna offers no public way to annotate a trial by its number.
        return int(self._optuna._storage.get_trial_id_from_study_id_trial_number(self._optuna._study_id, number))
