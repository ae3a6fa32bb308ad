"""Runs a study: Tune gives slots to the runs that the searcher proposes; the journal and the view hear what happens."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, Stopper, TuneConfig
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator import disk
from orchestrator.beginnings import Beginnings
from orchestrator.cluster import HEAD_NODE, TRIAL_SLOT, Capacity
from orchestrator.constraints import violations
from orchestrator.early_stopping import EarlyStopping, StopEarly
from orchestrator.group_slot import group_slot
from orchestrator.interrupt import Interrupt
from orchestrator.journal import Journal, Run, trial_key
from orchestrator.progress import StudyView
from orchestrator.proposals import Outcome
from orchestrator.reservations import ReleasePlacementGroups
from orchestrator.search import DriverOnly, StudySearcher
from orchestrator.seeds import selected, trials
from orchestrator.slots import ProcessSlot, record_of
from orchestrator.stop_rules import Stop
from search_spaces.stopping import Stopping
from search_spaces.study import Resources, Study
from trainers.config import Experiment, parse
from trainers.origin import Origin
from trainers.prefix import Sharing
from trainers.records import EpochRecord, read_records

_MAX_CRASHES = 2


@dataclass(frozen=True)
class Session:
    """What every phase of a study has at hand."""

    study: Study
    journal: Journal
    capacity: Capacity
    view: StudyView
    interrupt: Interrupt


def search(session: Session) -> None:
    """Run the study's trials until their total is reached, or the user interrupts."""
    study, journal = session.study, session.journal
    stopping = EarlyStopping(study.search.stop, journal)
    runs = TrialRuns(session, stopping)
    searcher = StudySearcher(study, journal.storage_url, journal.identity, runs, session.view.say)
    open_trials = study.trials - sum(run.state != "running" for run in trials(journal.runs()))
    if open_trials <= 0:
        return
    of_seeds = f" of {study.search.seeds} seeds" if study.search.seeds > 1 else ""
    session.view.phase(
        f"{open_trials} trials{of_seeds} on {session.capacity.concurrent_trials(study.resources)[0]} slots",
        runs=study.trials * study.search.seeds,
        epochs=open_trials * study.search.seeds * study.epochs,
    )
    scheduler = None if study.search.stop == Stopping() else StopEarly(stopping)
    run_on_slots(session, searcher, study.resources, "resources", scheduler)


class TrialRuns:
    """The runs of a study's trials, as its searcher needs them."""

    def __init__(self, session: Session, stopping: EarlyStopping) -> None:
        self._session = session
        self._study, self._journal = session.study, session.journal
        self._stopping = stopping
        self._beginnings = Beginnings(session.study, session.journal, session.study.resources)

    def propose(self, number: int, seed: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Prepare a run's folder, record that it was issued, and give the slot what it needs."""
        key, experiment = trial_key(number, seed), with_seed(self._study.experiment_for(values), seed)
        folder, twin = self._journal.trial_folder(number, seed), self._journal.twin(number, experiment)
        if twin is None:
            origin = self._beginnings.begin(experiment, folder)
        else:
            folder, origin = twin.folder, Origin("twin", twin.key, len(twin.records))
            if twin.state == "stopped":
                self._stopping.inherit(key, twin.key)
        self._journal.propose(
            number, values, experiment, seed=seed, seeds=self._study.search.seeds, folder=folder, origin=origin
        )
        sharing = self._beginnings.sharing(experiment, folder)
        return configuration(key, experiment, folder, self._study.resources, sharing)

    def decided(self, number: int, seed: int) -> Outcome | None:
        """Complete or failed, where the driver died before Optuna heard of it; or stopped."""
        run = self._find(number, seed)
        if run is not None and run.state in ("complete", "failed"):
            return Outcome(run.state, run.reason, run.objectives)
        return None if run is None else self._stopped(run)

    def epochs(self, number: int, seed: int) -> int:
        """How many epochs are recorded."""
        run = self._find(number, seed)
        return 0 if run is None else len(run.records)

    def judge(self, number: int, seed: int, report: Mapping[str, Any]) -> Outcome | None:
        """Stopped by a rule, or as its records say."""
        run = self._find(number, seed)
        assert run is not None
        return self._stopped(run) or judge_run(report, run.experiment, run.folder, self._study, self._session.interrupt)

    def ended(self, number: int, seed: int, outcome: Outcome) -> None:
        """Into the journal, once, and onto the screen."""
        run, key = self._find(number, seed), trial_key(number, seed)
        if run is None or run.state == "running":
            self._journal.ended(key, outcome.state, outcome.reason, list(outcome.objectives))
        self._session.view.ended(key, outcome.state, outcome.reason)

    def conclude(self, number: int, outcomes: Sequence[Outcome]) -> Outcome:
        """The trial as every reader of the journal sees it, and whether it meets the constraints."""
        runs = self._journal.runs()
        trial = next((trial for trial in trials(runs) if trial.trial == number), None)
        if trial is None:
            return outcomes[0]  # given up before it was ever recorded
        found = violations(self._study, trial, runs) if trial.state == "complete" else {}
        return Outcome(trial.state, trial.reason, trial.objectives, self._curve(trial, outcomes), found)

    def _curve(self, trial: Run, outcomes: Sequence[Outcome]) -> tuple[float, ...]:
        """The mean over the seeds of a stopped trial, those that ran to their end included, while all of them last."""
        names = self._study.search.objectives
        if trial.state != "stopped" or len(names) > 1:
            return ()
        ended = [run.records for run in trial.over_seeds if run.state == "complete"]
        curves = [tuple(record.metrics[names[0]] for record in records) for records in ended]
        curves += [outcome.curve for outcome in outcomes if outcome.state == "stopped"]
        return tuple(map(fmean, zip(*curves, strict=False)))

    def give_up(self, error: Exception) -> None:
        """Stop the study."""
        self._session.interrupt.give_up(error)

    def _find(self, number: int, seed: int) -> Run | None:
        return next((run for run in self._journal.runs() if run.key == trial_key(number, seed)), None)

    def _stopped(self, run: Run) -> Outcome | None:
        stop = self._stopping.decide(run.key, run.experiment, run.records)
        return None if stop is None else stopped_outcome(stop, run.records, self._study)


def with_seed(experiment: Experiment, offset: int) -> Experiment:
    """The same experiment with another seed."""
    return experiment.model_copy(update={"seed": experiment.seed + offset})


def run_on_slots(
    session: Session, searcher: Searcher, resources: Resources, section: str, scheduler: TrialScheduler | None = None
) -> None:
    """Let Tune run what the searcher gives, as many runs at once as fit. Returns early if the user interrupts."""
    concurrent = session.capacity.require(resources, section)
    scratch = session.journal.folder / "ray"
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if resources.workers > 1:
        slot: Any = group_slot(resources, scratch / "groups", start_attempts=3 if session.capacity.private else -1)
        # The workers of a group hold the CPUs. Its trial actor must hold something, but no part of a CPU, or the last
        # group would not fit: a slot, and on a cluster without slots a trace of the head node.
        needs = {"CPU": 0, TRIAL_SLOT: 1} if session.capacity.private else {"CPU": 0, HEAD_NODE: 0.001}
    else:
        slot = ProcessSlot
        needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    listener = _Listener(session)
    tune.Tuner(
        tune.with_resources(slot, needs),
        tune_config=TuneConfig(
            search_alg=_UntilInterrupted(searcher, session.interrupt),
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


def configuration(
    key: str, experiment: Experiment, folder: Path, resources: Resources, sharing: Sharing | None = None
) -> dict[str, Any]:
    """A run as a slot takes it."""
    return {
        "key": key,
        "experiment": experiment.to_dict(),
        "run_dir": str(folder),
        "threads": resources.cpus_per_worker,
        "gpus": resources.gpus_per_worker,
        "sharing": sharing,
    }


def judge_run(
    report: Mapping[str, Any], experiment: Experiment, folder: Path, study: Study, interrupt: Interrupt
) -> Outcome | None:
    """How a run ended, from its last report and its records; None if it goes on later.

    That is so after an interruption, when its processes died, and when the disk is full, which stops the study.
    """
    if report.get("disk_full"):
        interrupt.give_up(disk.full(report["disk_full"]))
        return None
    if report.get("crashed"):
        disk.check_space(folder.parent)
        return None
    if report.get("failure"):
        return Outcome("failed", str(report["failure"]))
    records = read_records(folder)
    if not records or records[-1].epoch + 1 < experiment.epochs:
        return None if interrupt.requested else Outcome("failed", "it ended before its last epoch")
    chosen = selected(records, study.search.checkpoint)
    objectives = tuple(float(chosen.metrics[name]) for name in study.search.objectives)
    if not all(math.isfinite(value) for value in objectives):
        return Outcome("failed", f"objectives are not finite: {objectives}")
    return Outcome("complete", "", objectives)


def stopped_outcome(stop: Stop, records: Sequence[EpochRecord], study: Study) -> Outcome:
    """How a stopped trial counts.

    With `checkpoint: best`, one that overfitted counts with its best epoch so far (some nets recover from a collapse
    and might have had a slightly better one). With `checkpoint: last` it has no last epoch, and one that was pruned
    lost to others: neither has objectives, so neither is confirmed. A group of several workers is an epoch ahead of
    the decision: what follows it is left out.
    """
    seen, names = records[: stop.epoch + 1], study.search.objectives
    counts = study.search.checkpoint == "best" and stop.rule != "prune"
    objectives = tuple(selected(seen, "best").metrics[name] for name in names) if counts else ()
    curve = tuple(record.metrics[names[0]] for record in seen) if len(names) == 1 else ()
    return Outcome("stopped", stop.reason, objectives, curve)


class _UntilInterrupted(DriverOnly, Searcher):
    """A searcher that proposes nothing more once the user has asked to stop."""

    def __init__(self, searcher: Searcher, interrupt: Interrupt) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self._searcher, self._interrupt = searcher, interrupt

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._interrupt.requested:
            return str(Searcher.FINISHED)
        proposed: dict[str, Any] | str | None = self._searcher.suggest(trial_id)
        return proposed

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._searcher.on_trial_complete(trial_id, result, error)

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
        record = record_of(result)
        if record is not None:
            self._view.epoch(trial.config["key"], record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.at_work.discard(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.at_work.discard(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.at_work.discard(trial.trial_id)
