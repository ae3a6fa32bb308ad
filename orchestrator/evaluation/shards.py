"""The final evaluation of a study's runs: fixed shards, one Ray task each, kept as they finish."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.host import disk
from orchestrator.host.devices import reserved_device
from orchestrator.records.journal import Run
from search_spaces.study import Confirm
from trainers import catalog
from trainers.config import Data, Experiment
from trainers.evaluation.consistency import with_warnings
from trainers.evaluation.result import Evaluation, Flags, Protocol
from trainers.whole_files import write_whole

if TYPE_CHECKING:
    from orchestrator.study.sweep import Session

ERROR_FILE = "evaluation_error.txt"
# How often a shard is tried again whose process or node is gone: it goes on after the last attack that it finished.
# Many times, for nodes may come and go; not for ever, for an attack may be what kills the process.
_MAX_LOSSES = 100


def protocol_for(experiment: Experiment, settings: Confirm, checkpoint: str, split: str = "test") -> Protocol:
    """The protocol of a study's confirmations; of its ladder on the `held-out` slice of the training images."""
    held_out = split == "held-out"
    available = experiment.data.holdout if held_out else catalog.DATASETS[experiment.data.name].num_test
    size = f"{experiment.data.size}x{experiment.data.size}" if experiment.data.name == "digits" else ""
    return Protocol(
        data=experiment.data.name + (f" {size}" if size else ""),
        split=split,
        samples=min(settings.samples, available),
        epsilon=str(experiment.evaluation.epsilon.plain()),
        attack=settings.attack,
        seed=settings.seed,
        shard=settings.shard,
        batch_size=settings.batch_size,
        checkpoint=checkpoint,
        training=training_text(experiment),
    )


def training_text(experiment: Experiment) -> str:
    """What a number owes to the size of its training: `small width=8, 3 epochs`, and the share of generated images.

    How many images there were, unless they were as many as the data set leaves to train on by default.
    """
    model, data = experiment.model, experiment.data
    dataset = catalog.DATASETS[data.name]
    defaults = catalog.MODELS[model.name].fields
    changed = [f"{key}={value}" for key, value in model.parameters.items() if value != defaults[key].default]
    parts = [" ".join([model.name, *changed]), f"{experiment.epochs} epochs"]
    if data.num_train != dataset.num_train - dataset.holdout:
        parts.append(f"{data.num_train} images")
    if data.extra_fraction is not None:
        parts.append(f"{data.extra_fraction:g} generated images")
    return ", ".join(parts)


def checkpoint_folder(run_dir: Path, rule: str) -> Path:
    """Where the best checkpoint of a run lies, or with another rule the newest epoch's."""
    from trainers.checkpoint import best_folder, epoch_folder, kept_epochs

    return best_folder(run_dir) if rule == "best" else epoch_folder(run_dir, max(kept_epochs(run_dir), default=0))


def evaluate_on_ray(session: Session, wanted: Sequence[tuple[Run, Protocol]]) -> Iterator[tuple[Run, Evaluation]]:
    """Evaluate runs, each shard a Ray task; yields each run when its last one has ended.

    A run that can't be evaluated is left out, and the journal says why. Shards that are done are read back, so this
    resumes. Raises Interrupted.
    """
    import ray

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
                session.journal.evaluated(run.key, problem)
                session.view.say(f"{run.key}  not evaluated: {problem}")
            elif not others:
                yield run, _collected(session, run, protocol)


def _submitted(session: Session, wanted: Sequence[tuple[Run, Protocol]]) -> dict[Any, tuple[Run, Protocol]]:
    """Reference of a Ray task -> what it evaluates a shard of."""
    import ray

    resources = session.study.resources
    threads, gpus = resources.cpus_per_worker, resources.gpus_per_worker
    task = ray.remote(attempt_shard).options(num_cpus=threads, num_gpus=gpus, max_retries=_MAX_LOSSES)
    pending: dict[Any, tuple[Run, Protocol]] = {}
    for run, protocol in wanted:
        folder = str(checkpoint_folder(run.folder, protocol.checkpoint))
        data = session.study.located(run.experiment).data.model_dump_json()
        for bounds in protocol.ranges():
            reference = task.remote(folder, data, asdict(protocol), *bounds, str(run.folder), threads, gpus)
            pending[reference] = run, protocol
    return pending


def _collected(session: Session, run: Run, protocol: Protocol) -> Evaluation:
    """The evaluation of a run whose shards have all ended, said and noted."""
    evaluation = collect(run.folder, checkpoint_folder(run.folder, protocol.checkpoint), protocol)
    if run.not_evaluated:
        session.journal.evaluated(run.key, "")
    session.view.say(f"{run.key}  {summary(evaluation)}")
    for warning in evaluation.warnings:
        session.view.say(f"{run.key}  warning: {warning}")
    return evaluation


def _problem_of(reference: Any) -> str | None:
    """Why a shard that has ended failed, if it did."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        problem: str | None = ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None  # no fault of the run: a full disk
    except RayError as error:
        return f"its processes died, {_MAX_LOSSES + 1} times ({type(error).__name__})"
    return problem


def attempt_shard(
    checkpoint: str, data: str, protocol: dict[str, Any], start: int, stop: int, run_dir: str, threads: int, gpus: float
) -> str | None:
    """`evaluate_shard`; of an error it keeps the traceback in the run's folder, and returns one line about it."""
    from orchestrator.slots.slot import keep_traceback

    try:
        evaluate_shard(checkpoint, data, protocol, start, stop, run_dir, threads, gpus)
    except Exception as error:
        if disk.is_full(error):
            raise
        return keep_traceback(Path(run_dir), error, ERROR_FILE)
    return None


def evaluate_shard(
    checkpoint: str, data: str, protocol: dict[str, Any], start: int, stop: int, run_dir: str, threads: int, gpus: float
) -> None:
    """Attack one range of a split of `data` (JSON), and keep its flags: attacks that have them are not run again."""
    from trainers.checkpoint import load
    from trainers.evaluation.ranges import evaluate_range, evaluation_images

    wanted = Protocol(**protocol)
    file = _shard_file(Path(run_dir), wanted, start, stop)
    if file.exists():
        return
    import torch

    torch.set_num_threads(threads)
    device = reserved_device(gpus)
    opened = load(Path(checkpoint))
    images = evaluation_images(Data.model_validate_json(data), wanted.samples, wanted.split).to(device)
    unfinished = file.with_suffix(".partial")
    known = _read_flags(unfinished) if unfinished.exists() else None
    flags = evaluate_range(
        opened.load_model(device), images, wanted, start, stop, known=known, keep=partial(_write_flags, file=unfinished)
    )
    _write_flags(flags, file)
    unfinished.unlink(missing_ok=True)


def collect(run_dir: Path, checkpoint: Path, protocol: Protocol) -> Evaluation:
    """Merge the shards of a run to its evaluation."""
    from trainers.checkpoint import load

    parts = [_read_flags(_shard_file(run_dir, protocol, *bounds)) for bounds in protocol.ranges()]
    opened = load(checkpoint)
    flags = reduce(Flags.merged, parts)
    return with_warnings(Evaluation(protocol, opened.experiment.digest(), opened.record.epoch, flags))


def summary(evaluation: Evaluation) -> str:
    """For example `clean 95.31 ± 0.68 %  apgd-ce 60.94 ± 1.54 %  …`, with binomial standard errors."""
    errors = evaluation.standard_errors
    return "  ".join(f"{stage} {percent(share, errors[stage])}" for stage, share in evaluation.accuracies.items())


def percent(share: float, error: float) -> str:
    """A share and its standard error: `60.94 ± 1.54 %`."""
    return f"{100 * share:.2f} ± {100 * error:.2f} %"


def _shard_file(run_dir: Path, protocol: Protocol, start: int, stop: int) -> Path:
    return run_dir / "shards" / f"{protocol.digest}-{start:06d}-{stop:06d}.json"


def _read_flags(file: Path) -> Flags:
    return Flags.from_plain(json.loads(file.read_text()))


def _write_flags(flags: Flags, file: Path) -> None:
    write_whole(file, json.dumps(asdict(flags)) + "\n")
