"""Ray Tune asks Optuna: an ask/tell Searcher whose only state is the Optuna storage.

Ray's own `OptunaSearch` loses trials that a dead driver left running, proposes the same points again in a new process
and keeps failed objectives running for ever. Here a proposal is a function of (study seed, trial number, history):
a killed and resumed study proposes what an uninterrupted one would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from ray.tune.search import Searcher

from orchestrator.storage import of_another_folder, open_database
from search_spaces.space import suggest
from search_spaces.study import Search, Study
from trainers.problems import InvalidInput

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


class Runs(Protocol):
    """The runs of the trials, as the searcher needs them. A trial has one run a seed, counted from 0."""

    def propose(self, number: int, seed: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Tune's configuration of a run at a point of the space."""

    def decided(self, number: int, seed: int) -> Outcome | None:
        """How a run ended of which Optuna has not heard, or None if it is to run."""

    def epochs(self, number: int, seed: int) -> int:
        """How many epochs of a run are recorded."""

    def judge(self, number: int, seed: int, report: Mapping[str, Any]) -> Outcome | None:
        """How a run ended, from its last report; None if it goes on later."""

    def ended(self, number: int, seed: int, outcome: Outcome) -> None:
        """A run has ended."""

    def conclude(self, number: int, outcomes: Sequence[Outcome]) -> Outcome:
        """How a trial ended whose runs have all been told as ended: what Optuna is told."""

    def give_up(self, error: Exception) -> None:
        """Something went wrong that Tune would take for the trial's."""


_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def open_storage(url: str, study: Study, identity: str, say: Callable[[str], None] = print) -> optuna.Study:
    """Open or create the Optuna study of the study folder with this identity.

    Raises InvalidInput if it is another folder's, or was made with other objectives. `say` hears of a database that
    goes away later.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["maximize"] * len(study.search.objectives)
    opened = optuna.create_study(
        study_name=study.name,
        storage=open_database(url, say),
        directions=directions,
        load_if_exists=True,
    )
    wanted, attributes = list(study.search.objectives), opened.user_attrs
    if attributes.get("identity", identity) != identity:
        raise InvalidInput.single("search.storage", of_another_folder(study))
    held = attributes.get("objectives")
    if held is None:
        opened.set_user_attr("identity", identity)
        for point in study.start_points:
            opened.enqueue_trial(point, skip_if_exists=True)
        opened.set_user_attr("objectives", wanted)  # last: whatever a kill cut short is done again
    elif held != wanted:
        raise InvalidInput.single("search.objectives", f"the stored study has the objectives {held}, not {wanted}")
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
        # A low-discrepancy sequence is one sequence: it keeps the study's seed. What the first trial did not have, such
        # as dimensions under conditions, is not in it.
        return optuna.samplers.QMCSampler(
            seed=search.seed, scramble=True, independent_sampler=optuna.samplers.RandomSampler(seed=seed),
            warn_independent_sampling=False,
        )  # fmt: skip


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

    Each of a trial's runs, one a seed, is a trial of Tune's; Optuna is told when the last of them has ended. A run that
    ends without objectives ends its trial: those that were not issued yet never are. Trials found RUNNING when the
    search starts were left by a dead driver: their runs are issued again under their own number, unless they are
    decided; so are those whose processes died. One is given up after MAX_ATTEMPTS in a row without a new epoch. There
    must be one driver.
    """

    def __init__(
        self, study: Study, storage_url: str, identity: str, runs: Runs, say: Callable[[str], None] = print
    ) -> None:
        objectives = list(study.search.objectives)
        super().__init__(metric=objectives, mode=["max"] * len(objectives))
        self._study = study
        self._runs = runs
        self._optuna = open_storage(storage_url, study, identity, say)
        self._waiting: list[tuple[int, int]] = []
        self._running: dict[str, tuple[int, int]] = {}
        self._outcomes: dict[int, dict[int, Outcome]] = {}
        for trial in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            outcomes = {seed: runs.decided(trial.number, seed) for seed in range(study.search.seeds)}
            self._waiting += [(trial.number, seed) for seed, outcome in outcomes.items() if outcome is None]
            for seed, outcome in outcomes.items():
                if outcome is not None:
                    self._record(trial.number, seed, outcome)
            self._settle(trial.number)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's question: the next configuration, or FINISHED."""
        while True:
            while self._waiting:
                number, seed = self._waiting.pop(0)
                configuration = self._issue(number, seed)
                if configuration is not None:
                    self._running[trial_id] = (number, seed)
                    return configuration
            trials = self._optuna.get_trials(deepcopy=False)
            enqueued = [trial.number for trial in trials if trial.state == TrialState.WAITING]
            if len(trials) - len(enqueued) >= self._study.trials:
                # A run that is on its way may have to be issued again.
                return None if self._running else str(Searcher.FINISHED)
            self._optuna.sampler = make_sampler(self._study.search, enqueued[0] if enqueued else len(trials))
            trial = self._optuna.ask()
            suggest(self._study.space, trial)
            self._waiting += [(trial.number, seed) for seed in range(self._study.search.seeds)]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: intermediate values go to the records, not to Optuna."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hear how a run ended; one that was only interrupted leaves its trial RUNNING and is issued again."""
        run = self._running.pop(trial_id, None)
        if run is None:
            return
        try:
            # Tune stops a trial that has not started yet without a result.
            outcome = self._runs.judge(*run, {"crashed": True} if error else result or {})
            if outcome is not None:
                self._end(*run, outcome)
            elif error:
                self._waiting.append(run)
            else:
                self._note(*run, "fruitless", 0)
        except Exception as problem:
            self._runs.give_up(problem)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the storage is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a fresh searcher on the same storage is the restored one."""

    def _issue(self, number: int, seed: int) -> dict[str, Any] | None:
        """Tune's configuration of a run; None where it has ended: given up, or the same as one that was stopped."""
        stored, epochs = self._stored(number), self._runs.epochs(number, seed)
        attempts, fruitless, seen = (_noted(stored, seed, key) for key in ("attempts", "fruitless", "epochs"))
        # How often in a row it was issued without recording a new epoch.
        fruitless = fruitless if epochs <= seen else 0
        if fruitless >= MAX_ATTEMPTS:
            reason = f"given up after {MAX_ATTEMPTS} attempts without a new epoch"
            self._end(number, seed, Outcome("failed", reason))
            return None
        for key, value in (("attempts", attempts + 1), ("fruitless", fruitless + 1), ("epochs", epochs)):
            self._note(number, seed, key, value)
        # As they are stored, the first time as every other: a whole number that was enqueued comes back as a float.
        configuration = self._runs.propose(number, seed, self._values(stored))
        outcome = self._runs.decided(number, seed)
        if outcome is not None:
            self._end(number, seed, outcome)
            return None
        return configuration

    def _end(self, number: int, seed: int, outcome: Outcome) -> None:
        self._record(number, seed, outcome)
        self._settle(number)

    def _record(self, number: int, seed: int, outcome: Outcome) -> None:
        self._runs.ended(number, seed, outcome)
        self._outcomes.setdefault(number, {})[seed] = outcome
        if not outcome.objectives:
            stored = self._stored(number)
            self._waiting = [run for run in self._waiting if run[0] != number or _noted(stored, run[1], "attempts")]

    def _settle(self, number: int) -> None:
        """Tell Optuna of a trial once none of its runs is on its way."""
        if all(run[0] != number for run in (*self._waiting, *self._running.values())):
            outcomes = self._outcomes.pop(number)
            self._tell(number, self._runs.conclude(number, [outcomes[seed] for seed in sorted(outcomes)]))

    def _values(self, stored: FrozenTrial) -> dict[str, Any]:
        """The values of a trial; what a driver that died had not drawn yet is drawn as it would have been."""
        try:
            return suggest(self._study.space, FixedTrial(stored.params, stored.number))
        except ValueError:
            self._optuna.sampler = make_sampler(self._study.search, stored.number)
            return suggest(self._study.space, _Redrawn(self._optuna, stored._trial_id))

    def _stored(self, number: int) -> FrozenTrial:
        return self._optuna.get_trials(deepcopy=False)[number]

    def _tell(self, number: int, outcome: Outcome) -> None:
        self._annotate(number, "reason", outcome.reason)
        for epoch, value in enumerate(outcome.curve):
            self._optuna._storage.set_trial_intermediate_value(self._storage_id(number), epoch, value)
        # GP wants all of them of every trial, so one whose limit is not known yet is met; CMA-ES complains about any.
        if outcome.state == "complete" and self._study.search.sampler != "cmaes":
            trial = optuna.trial.Trial(self._optuna, self._storage_id(number))
            for metric in self._study.search.constraints:
                trial.set_constraint(metric, outcome.violations.get(metric, 0.0))
        values = list(outcome.objectives) if outcome.state == "complete" else None
        self._optuna.tell(number, values, state=_STATES[outcome.state], skip_if_finished=True)

    def _note(self, number: int, seed: int, key: str, value: int) -> None:
        self._annotate(number, _of_seed(key, seed), value)

    def _annotate(self, number: int, key: str, value: Any) -> None:
        self._optuna._storage.set_trial_user_attr(self._storage_id(number), key, value)

    def _storage_id(self, number: int) -> int:
        # Optuna offers no public way to annotate a trial by its number.
        return int(self._optuna._storage.get_trial_id_from_study_id_trial_number(self._optuna._study_id, number))


def _noted(stored: FrozenTrial, seed: int, key: str) -> int:
    return int(stored.user_attrs.get(_of_seed(key, seed), 0))


def _of_seed(key: str, seed: int) -> str:
    return f"{key}/seed{seed}" if seed else key


class _Redrawn(optuna.trial.Trial):
    """A trial that keeps the values it has; each is drawn again all the same, for the sampler's sake.

    A sampler draws one value after the other from one generator: skipping a draw would change those that follow.
    """

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        drawn = name in self.distributions and not distribution.single()
        if drawn and name not in self._fixed_params and name not in self.relative_params:
            self.study.sampler.sample_independent(self.study, self._cached_frozen_trial, name, distribution)
        return super()._suggest(name, distribution)
