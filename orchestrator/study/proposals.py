"""What Optuna proposes and remembers: the stored study, whose trials are the only state of a search.

Ray's own `OptunaSearch` loses trials that a dead driver left running, proposes the same points again in a new process
and keeps failed objectives running for ever. Here a proposal is a function of (study seed, trial number, history):
a killed and resumed study proposes what an uninterrupted one would have.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from orchestrator.records.database_wait import DatabaseWait
from orchestrator.records.events import Ended, State
from orchestrator.records.storage import of_another_folder, open_database
from search_spaces.space import suggest
from search_spaces.study import Search, Study
from trainers.problems import InvalidInput

_DRIVER = "driver"  # the attribute of a stored study that tells its drivers apart
_STATES: dict[State, TrialState] = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: complete (with its objectives), stopped or failed (with the reason).

    A stopped trial has objectives where its best epoch counts all the same; Optuna hears of them only once complete.
    `curve` is the objective of a stopped trial epoch by epoch, where the study has one: Optuna knows no intermediate
    values of studies with two, and its TPE fails on such. `violations` are those of constraints, by metric: at most 0
    where one is met.
    """

    state: State
    reason: str = ""
    objectives: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    violations: Mapping[str, float] = field(default_factory=dict)

    def event(self, key: str) -> Ended:
        """What the journal keeps of it, for the run with this key."""
        return Ended(key=key, state=self.state, reason=self.reason, objectives=self.objectives)


class SeedRun(NamedTuple):
    """A run of a trial: Optuna's number of the trial, and which of its seeds, counted from 0."""

    number: int
    seed: int


@dataclass(frozen=True)
class Attempts:
    """How often a run was issued: in all, and in a row without a new epoch (`epochs` it had the last time)."""

    attempts: int = 0
    fruitless: int = 0
    epochs: int = 0

    def again(self, epochs: int) -> Attempts:
        """Issued once more, with so many epochs recorded by now."""
        fruitless = self.fruitless if epochs <= self.epochs else 0
        return Attempts(self.attempts + 1, fruitless + 1, epochs)


class Proposals:
    """What Optuna has stored of a study (`open_storage`), whose driver this is now. A trial is known by its number."""

    def __init__(self, study: Study, stored: optuna.Study) -> None:
        self._study, self._stored = study, stored
        self._driver = uuid.uuid4().hex
        self._stored.set_user_attr(_DRIVER, self._driver)

    def running(self) -> list[int]:
        """Trials of which Optuna was not told how they ended."""
        return [trial.number for trial in self._stored.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def ask(self) -> int | None:
        """The next trial, with its values drawn and stored; None once the study has all of its trials.

        Raises ConnectionError once another driver has opened the study, as do `note` and `tell`.
        """
        self._check_is_ours()
        trials = self._stored.get_trials(deepcopy=False)
        enqueued = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        if len(trials) - len(enqueued) >= self._study.trials:
            return None
        self._stored.sampler = make_sampler(self._study.search, enqueued[0] if enqueued else len(trials))
        trial = self._stored.ask()
        suggest(self._study.space, trial)
        return int(trial.number)

    def values(self, number: int) -> dict[str, Any]:
        """The values of a trial; what a driver that died had not drawn yet is drawn as it would have been."""
        trial = self._trial(number)
        try:
            return suggest(self._study.space, FixedTrial(trial.params, number))
        except ValueError:
            self._stored.sampler = make_sampler(self._study.search, number)
            return suggest(self._study.space, _Redrawn(self._stored, trial._trial_id))

    def attempts(self, run: SeedRun) -> Attempts:
        """How often a run was issued so far."""
        notes = self._trial(run.number).user_attrs
        return Attempts(**{name: int(notes.get(_of_seed(name, run.seed), 0)) for name in asdict(Attempts())})

    def note(self, run: SeedRun, attempts: Attempts) -> None:
        """Remember how often a run was issued."""
        for name, value in asdict(attempts).items():
            self._annotate(run.number, _of_seed(name, run.seed), value)

    def tell(self, number: int, outcome: Outcome) -> None:
        """How a trial ended."""
        trial_id, search = self._trial(number)._trial_id, self._study.search
        self._annotate(number, "reason", outcome.reason)
        for epoch, value in enumerate(outcome.curve):
            self._stored._storage.set_trial_intermediate_value(trial_id, epoch, value)
        # GP wants all of them of every trial, so one whose limit is not known yet is met; CMA-ES complains about any.
        if outcome.state == "complete" and search.sampler != "cmaes":
            trial = Trial(self._stored, trial_id)
            for metric in search.constraints:
                trial.set_constraint(metric, outcome.violations.get(metric, 0.0))
        values = list(outcome.objectives) if outcome.state == "complete" else None
        self._stored.tell(number, values, state=_STATES[outcome.state], skip_if_finished=True)

    def _trial(self, number: int) -> FrozenTrial:
        return self._stored.get_trials(deepcopy=False)[number]

    def _check_is_ours(self) -> None:
        """The lock of a study folder knows nothing of its copies: whoever came last has the study."""
        if self._stored.user_attrs.get(_DRIVER) != self._driver:
            raise ConnectionError(
                f"search.storage: another driver goes on with the study {self._study.name!r}, in a copy of this "
                "folder; this one has stopped"
            )

    def _annotate(self, number: int, name: str, value: Any) -> None:
        self._check_is_ours()
        # Optuna offers no public way to annotate a trial by its number.
        self._stored._storage.set_trial_user_attr(self._trial(number)._trial_id, name, value)


def open_storage(study: Study, url: str, identity: str, waiting: DatabaseWait | None) -> optuna.Study:
    """Open or create the Optuna study of the study folder with this identity.

    Raises InvalidInput if it is another folder's, or was made with other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["maximize"] * len(study.search.objectives)
    opened = optuna.create_study(
        study_name=study.name,
        storage=open_database(url, waiting),
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


class _Redrawn(Trial):
    """A trial that keeps the values it has; each is drawn again all the same, for the sampler's sake.

    A sampler draws one value after the other from one generator: skipping a draw would change those that follow.
    """

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        drawn = name in self.distributions and not distribution.single()
        if drawn and name not in self._fixed_params and name not in self.relative_params:
            self.study.sampler.sample_independent(self.study, self._cached_frozen_trial, name, distribution)
        return super()._suggest(name, distribution)


def _of_seed(name: str, seed: int) -> str:
    return f"{name}/seed{seed}" if seed else name
