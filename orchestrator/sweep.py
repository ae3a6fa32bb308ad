"""Runs a study: Tune gives slots to the runs that the searcher proposes; the journal and the view hear what happens."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, Stopper, TuneConfig
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator import disk
from orchestrator.cluster import HEAD_NODE, TRIAL_SLOT, Capacity
from orchestrator.constraints import violations
from orchestrator.early_stopping import EarlyStopping, StopEarly
from orchestrator.interrupt import Interrupt
from orchestrator.journal import Journal, Run, trial_key
from orchestrator.progress import StudyView
from orchestrator.reservations import ReleasePlacementGroups
from orchestrator.search import DriverOnly, Outcome, StudySearcher
from orchestrator.slots import ProcessSlot, group_slot, record_of
from orchestrator.stop_rules import Stop
from search_spaces.stopping import Stopping
from search_spaces.study import Resources, Study
from trainers.config import Experiment, parse
from trainers.diagnostics.overfitting import ROBUST_ACCURACY
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
    study, journal, view = session.study, session.journal, session.view
    stopping = EarlyStopping(study.search.stop, journal)

    def propose(number: int, values: Mapping[str, Any]) -> dict[str, Any]:
        experiment = study.experiment_for(values)
        folder = journal.propose(number, values, experiment)
        return configuration(trial_key(number), experiment, folder, study.resources)

    def run_of(number: int) -> Run | None:
        return next((run for run in journal.runs() if run.key == trial_key(number)), None)

    def stopped(run: Run) -> Outcome | None:
        stop = stopping.decide(run.key, run.experiment, run.records)
        return None if stop is None else stopped_outcome(stop, run.records, study)

    def constrained(run: Run, outcome: Outcome | None) -> Outcome | None:
        if outcome is None or outcome.state != "complete":
            return outcome
        ended = replace(run, objectives=outcome.objectives)
        return replace(outcome, violations=violations(study, ended, [ended, *journal.runs()]))

    def decided(number: int) -> Outcome | None:
        run = run_of(number)
        if run is not None and run.state in ("complete", "failed"):
            # The driver died before Optuna heard of it.
            return constrained(run, Outcome(run.state, run.reason, run.objectives))
        return None if run is None else stopped(run)

    def epochs(number: int) -> int:
        run = run_of(number)
        return 0 if run is None else len(run.records)

    def judge(number: int, report: Mapping[str, Any]) -> Outcome | None:
        run = run_of(number)
        assert run is not None
        return stopped(run) or constrained(run, judge_run(report, run.experiment, run.folder, study, session.interrupt))

    def ended(number: int, outcome: Outcome) -> None:
        run = run_of(number)
        if run is None or run.state == "running":
            journal.ended(trial_key(number), outcome.state, outcome.reason, list(outcome.objectives))
        view.ended(trial_key(number), outcome.state, outcome.reason)

    searcher = StudySearcher(
        study, journal.storage_url, propose, judge, ended, decided, epochs, session.interrupt.give_up
    )
    open_trials = study.trials - sum(run.kind == "trial" and run.state != "running" for run in journal.runs())
    if open_trials <= 0:
        return
    view.phase(
        f"{open_trials} trials on {session.capacity.concurrent_trials(study.resources)[0]} slots",
        runs=study.trials,
        epochs=open_trials * int(study.experiment.get("epochs", Experiment.model_fields["epochs"].default)),
    )
    scheduler = None if study.search.stop == Stopping() else StopEarly(stopping)
    run_on_slots(session, searcher, study.resources, "resources", scheduler)


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
    tune.Tuner(
        tune.with_resources(slot, needs),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            max_concurrent_trials=concurrent,
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name=f"{session.study.name}-{section}",
            storage_path=str(scratch / "tune"),
            verbose=0,
            stop=_StopOnInterrupt(session.interrupt),
            callbacks=[_Listener(session), ReleasePlacementGroups()],
            failure_config=FailureConfig(max_failures=_MAX_CRASHES),
        ),
    ).fit()


def configuration(key: str, experiment: Experiment, folder: Path, resources: Resources) -> dict[str, Any]:
    """A run as a slot takes it."""
    return {
        "key": key,
        "experiment": experiment.to_dict(),
        "run_dir": str(folder),
        "threads": resources.cpus_per_worker,
    }


def selected_record(records: Sequence[EpochRecord], rule: str) -> EpochRecord:
    """The epoch that counts: the last one, or the first of the most robust ones on the held-out slice."""
    if rule == "last":
        return records[-1]
    return max(records, key=lambda record: (record.metrics[ROBUST_ACCURACY], -record.epoch))


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
    chosen = selected_record(records, study.search.checkpoint)
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
    objectives = tuple(selected_record(seen, "best").metrics[name] for name in names) if counts else ()
    curve = tuple(record.metrics[names[0]] for record in seen) if len(names) == 1 else ()
    return Outcome("stopped", stop.reason, objectives, curve)


class _StopOnInterrupt(DriverOnly, Stopper):
    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._interrupt.requested

    def stop_all(self) -> bool:
        return self._interrupt.requested


class _Listener(DriverOnly, Callback):
    """Passes Tune's events on to the view."""

    def __init__(self, session: Session) -> None:
        self._view = session.view

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        records = read_records(Path(trial.config["run_dir"]))
        self._view.started(trial.config["key"], parse(trial.config["experiment"]), records)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = record_of(result)
        if record is not None:
            self._view.epoch(trial.config["key"], record)
