"""Ray Tune asks Optuna: an ask/tell Searcher whose only state is the Optuna storage.

Ray's own `OptunaSearch` loses trials that a dead driver left running, proposes the same points again in a new process
and keeps failed objectives running for ever. Here a proposal is a function of (study seed, trial number, history):
a killed and resumed study proposes what an uninterrupted one would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
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
    values of studies with two, and its TPE fails on such. `violations` are those of constraints, by metric: at most 0
    where one is met.
    """

    state: str
    reason: str = ""
    objectives: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    violations: Mapping[str, float] = field(default_factory=dict)


Propose = Callable[[int, Mapping[str, Any]], dict[str, Any]]
Judge = Callable[[int, Mapping[str, Any]], Outcome | None]
Ended = Callable[[int, Outcome], None]
Decided = Callable[[int], Outcome | None]
Epochs = Callable[[int], int]
GiveUp = Callable[[Exception], None]
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.sampler == "grid":
            return _Grid(seed=seed)
        if search.sampler == "gp":
            startup = search.startup_trials
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if search.sampler == "cmaes":
            startup = search.startup_trials
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
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
    says how it ended, `ended(number, outcome)` is told before Optuna is. Trials found RUNNING when the search starts
    were left by a dead driver: they are issued again under their own number, unless `decided(number)` knows that they
    had ended or were stopped; so are those whose processes died. One is given up after MAX_ATTEMPTS in a row without a
    new epoch (`epochs(number)` counts them). An error that Tune would take for a trial's goes to `give_up`. There must
    be one driver.
    """

    def __init__(
        self,
        study: Study,
        storage_url: str,
        propose: Propose,
        judge: Judge,
        ended: Ended,
        decided: Decided,
        epochs: Epochs,
        give_up: GiveUp,
    ) -> None:
        objectives = list(study.search.objectives)
        super().__init__(metric=objectives, mode=["max"] * len(objectives))
        self._study = study
        self._propose = propose
        self._judge = judge
        self._ended = ended
        self._epochs = epochs
        self._give_up = give_up
        self._optuna = open_storage(storage_url, study)
        self._running: dict[str, int] = {}
        self._orphans: list[int] = []
        for trial in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            outcome = decided(trial.number)
            if outcome is None:
                self._orphans.append(trial.number)
            else:
                self._tell(trial.number, outcome)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's question: the next configuration, or FINISHED."""
        while self._orphans:
            number = self._orphans.pop(0)
            if self._fruitless(number) >= MAX_ATTEMPTS:
                reason = f"given up after {MAX_ATTEMPTS} attempts without a new epoch"
                self._tell(number, Outcome("failed", reason))
                continue
            return self._issue(trial_id, number, self._values_again(number))
        trials = self._optuna.get_trials(deepcopy=False)
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        if len(trials) - len(waiting) >= self._study.trials:
            # A trial that runs may have to be issued again.
            return None if self._running else str(Searcher.FINISHED)
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
        try:
            # Tune stops a trial that has not started yet without a result.
            outcome = self._judge(number, {"crashed": True} if error else result or {})
            if outcome is not None:
                self._tell(number, outcome)
            elif error:
                self._orphans.append(number)
            else:
                self._note(number, "fruitless", 0)
        except Exception as problem:
            self._give_up(problem)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the storage is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a fresh searcher on the same storage is the restored one."""

    def _issue(self, trial_id: str, number: int, values: dict[str, Any]) -> dict[str, Any]:
        notes = self._stored(number).user_attrs
        self._note(number, "attempts", notes.get("attempts", 0) + 1)
        self._note(number, "fruitless", self._fruitless(number) + 1)
        self._note(number, "epochs", self._epochs(number))
        self._running[trial_id] = number
        return self._propose(number, values)

    def _fruitless(self, number: int) -> int:
        """How often in a row a trial was issued without recording a new epoch."""
        notes = self._stored(number).user_attrs
        return int(notes.get("fruitless", 0)) if self._epochs(number) <= notes.get("epochs", 0) else 0

    def _values_again(self, number: int) -> dict[str, Any]:
        """The values of a trial; what a driver that died had not drawn yet is drawn as it would have been."""
        try:
            return suggest(self._study.space, FixedTrial(self._stored(number).params, number))
        except ValueError:
            self._optuna.sampler = make_sampler(self._study.search, number)
            return suggest(self._study.space, _Redrawn(self._optuna, self._stored(number)._trial_id))

    def _stored(self, number: int) -> optuna.trial.FrozenTrial:
        return self._optuna.get_trials(deepcopy=False)[number]

    def _tell(self, number: int, outcome: Outcome) -> None:
        self._ended(number, outcome)
        self._note(number, "reason", outcome.reason)
        for epoch, value in enumerate(outcome.curve):
            self._optuna._storage.set_trial_intermediate_value(self._storage_id(number), epoch, value)
        if outcome.violations:
            trial = optuna.trial.Trial(self._optuna, self._storage_id(number))
            for metric, amount in outcome.violations.items():
                trial.set_constraint(metric, amount)
        values = list(outcome.objectives) if outcome.state == "complete" else None
        self._optuna.tell(number, values, state=_STATES[outcome.state], skip_if_finished=True)

    def _note(self, number: int, key: str, value: Any) -> None:
        self._optuna._storage.set_trial_user_attr(self._storage_id(number), key, value)

    def _storage_id(self, number: int) -> int:
        # Optuna offers no public way to annotate a trial by its number.
        return int(self._optuna._storage.get_trial_id_from_study_id_trial_number(self._optuna._study_id, number))


class _Redrawn(optuna.trial.Trial):
    """A trial that keeps the values it has; each is drawn again all the same, for the sampler's sake.

    A sampler draws one value after the other from one generator: skipping a draw would change those that follow.
    """

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        drawn = name in self.distributions and not distribution.single()
        if drawn and name not in self._fixed_params and name not in self.relative_params:
            self.study.sampler.sample_independent(self.study, self._cached_frozen_trial, name, distribution)
        return super()._suggest(name, distribution)
