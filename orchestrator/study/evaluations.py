"""Final attacks on a study's runs: each shard a Ray task, lost ones tried again, failed ones told of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.evaluation.protocols import checkpoint_folder
from orchestrator.evaluation.shards import Shard, attempt_shard, collect, summary
from orchestrator.records.events import Evaluated
from orchestrator.records.runs import Run
from orchestrator.study.session import Session
from trainers.evaluation.result import EvaluationResult, Protocol

# How often a shard is tried again whose process or node is gone: it goes on after the last attack that it finished.
# Many times, for nodes may come and go; not for ever, for an attack may be what kills the process.
_MAX_LOSSES = 100


def evaluate_on_ray(session: Session, wanted: Sequence[tuple[Run, Protocol]]) -> Iterator[tuple[Run, EvaluationResult]]:
    """Evaluate runs, each shard a Ray task; yields each run when its last one has ended.

    A run that can't be evaluated is left out, and the journal says why. Shards that are done are read back, so this
    resumes. Raises StopRequested.
    """
    pending = _submitted(session, wanted)
    while pending:
        done, _ = ray.wait(list(pending), timeout=1.0)
        if session.interrupt.requested:
            for reference in pending:
                ray.cancel(reference, force=True)
            session.interrupt.check()
        for reference in done:
            run, protocol = pending.pop(reference)
            problem = _problem_of(reference)
            others = [other for other, (its, _) in pending.items() if its.key == run.key]
            if problem:
                for other in others:
                    ray.cancel(other, force=True)
                    del pending[other]
                session.journal.append(Evaluated(key=run.key, problem=problem))
                session.view.say(f"{run.key}  not evaluated: {problem}")
            elif not others:
                yield run, _collected(session, run, protocol)


def _submitted(session: Session, wanted: Sequence[tuple[Run, Protocol]]) -> dict[Any, tuple[Run, Protocol]]:
    """Reference of a Ray task -> what it evaluates a shard of."""
    resources = session.study.resources
    threads, gpus = resources.cpus_per_worker, resources.gpus_per_worker
    task = ray.remote(attempt_shard).options(num_cpus=threads, num_gpus=gpus, max_retries=_MAX_LOSSES)
    pending: dict[Any, tuple[Run, Protocol]] = {}
    for run, protocol in wanted:
        folder = checkpoint_folder(run.folder, protocol.checkpoint)
        data = session.study.located(run.experiment).data
        for bounds in protocol.ranges():
            shard = Shard(folder, data, protocol, bounds, run.folder)
            pending[task.remote(shard, threads, gpus)] = run, protocol
    return pending


def _collected(session: Session, run: Run, protocol: Protocol) -> EvaluationResult:
    """The evaluation of a run whose shards have all ended, told to the user."""
    evaluation = collect(run.folder, checkpoint_folder(run.folder, protocol.checkpoint), protocol)
    session.view.say(f"{run.key}  {summary(evaluation)}")
    for warning in evaluation.warnings:
        session.view.say(f"{run.key}  warning: {warning}")
    return evaluation


def _problem_of(reference: Any) -> str | None:
    """Why a shard that has ended failed, if it did."""
    try:
        problem: str | None = ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None  # no fault of the run: a full disk
    except RayError as error:
        return f"its processes died, {_MAX_LOSSES + 1} times ({type(error).__name__})"
    return problem
