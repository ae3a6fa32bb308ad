"""Ray Tune runs what a source gives, on slots; the view hears what happens, and an interruption is waited for."""

from __future__ import annotations

import logging
from collections.abc import Set
from pathlib import Path
from typing import Any, Protocol, cast

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, Stopper, TuneConfig
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.cluster.connection import HEAD_NODE, TRIAL_SLOT
from orchestrator.host.interrupt import Interrupt
from orchestrator.slots.group_slot import group_slot
from orchestrator.slots.messages import Job, Report, record_of
from orchestrator.slots.reservations import ReleasePlacementGroups
from orchestrator.slots.slot import ProcessSlot
from orchestrator.study.session import Session
from search_spaces.study import Resources
from trainers.config import parse
from trainers.records import read_records

_MAX_CRASHES = 2


class Source(Protocol):
    """Where runs come from. `trial_id` is Tune's name for one."""

    def suggest(self, trial_id: str) -> Job | str | None:
        """The job of the next run, None for "ask again later", or `Searcher.FINISHED`."""

    def ended(self, trial_id: str, report: Report) -> None:
        """How a run ended: its last report, empty if it never began."""


class DriverOnly:
    """Belongs to the driver's process. Tune pickles its own snapshot for `Tuner.restore`, which we do not use: the
    state of a study is its Optuna storage and its journal. In that snapshot such an object is None.
    """

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def run_on_slots(
    session: Session, source: Source, resources: Resources, section: str, scheduler: TrialScheduler | None = None
) -> None:
    """Let Tune run what the source gives, as many runs at once as fit. Returns early if the user interrupts."""
    concurrent = session.capacity.require(resources, section)
    scratch = session.journal.folder / "ray"
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    listener = _Listener(session)
    tune.Tuner(
        _slot(resources, scratch / "groups", private=session.capacity.private),
        tune_config=TuneConfig(
            search_alg=SourceSearcher(source, session.interrupt),
            scheduler=scheduler,
            max_concurrent_trials=concurrent,
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name=f"{session.study.name}-{section}",
            storage_path=str(scratch / "tune"),
            verbose=0,
            stop=_StopOnInterrupt(session.interrupt, listener.at_work),
            callbacks=[listener, ReleasePlacementGroups()],
            failure_config=FailureConfig(max_failures=_MAX_CRASHES),
        ),
    ).fit()


def _slot(resources: Resources, groups: Path, *, private: bool) -> Any:
    """What Tune starts for these resources, with what it reserves. `private` is a Ray that we started."""
    if resources.workers == 1:
        return tune.with_resources(ProcessSlot, {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker})
    # The workers of a group hold the CPUs. Its trial actor must hold something, but no part of a CPU, or the last
    # group would not fit: a slot, and on a cluster without slots a trace of the head node.
    needs = {"CPU": 0, TRIAL_SLOT: 1} if private else {"CPU": 0, HEAD_NODE: 0.001}
    return tune.with_resources(group_slot(resources, groups, start_attempts=3 if private else -1), needs)


class SourceSearcher(DriverOnly, Searcher):
    """Tune's side of a source, which is asked for nothing more once the user has asked to stop.

    Its state is in files: a fresh one is the restored one. What goes wrong in it stops the study; Tune would take it
    for the run's.
    """

    def __init__(self, source: Source, interrupt: Interrupt) -> None:
        super().__init__()
        self._source, self._interrupt = source, interrupt

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's question for the next run."""
        if self._interrupt.requested:
            return str(Searcher.FINISHED)
        try:
            proposed = self._source.suggest(trial_id)
        except ConnectionError as error:
            if not self._interrupt.requested:
                raise
            # It was asked to stop while it waited for its database: what is at work ends its epoch all the same.
            self._interrupt.give_up(error)
            return str(Searcher.FINISHED)
        return dict(proposed) if isinstance(proposed, dict) else proposed

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's word that a run has ended."""
        try:
            # Tune stops a trial that has not started yet without a result.
            self._source.ended(trial_id, {"crashed": True} if error else cast(Report, result or {}))
        except Exception as problem:
            self._interrupt.give_up(problem)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _StopOnInterrupt(DriverOnly, Stopper):
    """After an interruption a trial stops at its next report, and the study when all that were at work have."""

    def __init__(self, interrupt: Interrupt, at_work: Set[str]) -> None:
        self._interrupt, self._at_work = interrupt, at_work

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._interrupt.requested

    def stop_all(self) -> bool:
        # Then Tune ends: what is still in an epoch is killed some seconds later.
        return self._interrupt.requested and not self._at_work


class _Listener(DriverOnly, Callback):
    """Passes Tune's events on to the view, and knows which trials an interruption has to wait for."""

    def __init__(self, session: Session) -> None:
        self._view, self._interrupt = session.view, session.interrupt
        self.at_work: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # One that was on its way when the user asked to stop has nothing to lose: nobody waits for it.
        if not self._interrupt.requested:
            self.at_work.add(trial.trial_id)
        records = read_records(Path(trial.config["run_dir"]))
        self._view.started(trial.config["key"], parse(trial.config["experiment"]), records)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = record_of(cast(Report, result))
        if record is not None:
            self._view.epoch(trial.config["key"], record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.at_work.discard(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.at_work.discard(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.at_work.discard(trial.trial_id)
