"""The final evaluation of a study's runs: fixed shards, one Ray task each, kept as they finish."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.devices import reserved_device
from orchestrator.journal import Run
from search_spaces.study import Confirm
from trainers import catalog
from trainers.config import Experiment
from trainers.evaluation.consistency import with_warnings
from trainers.evaluation.result import Evaluation, Flags, Protocol

if TYPE_CHECKING:
    from orchestrator.sweep import Session


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
    """What a number owes to the size of its training: `small width=8, 3 epochs`, and the share of generated images."""
    model = experiment.model
    defaults = catalog.MODELS[model.name].fields
    changed = [f"{key}={value}" for key, value in model.parameters.items() if value != defaults[key].default]
    parts = [" ".join([model.name, *changed]), f"{experiment.epochs} epochs"]
    if experiment.data.extra_fraction is not None:
        parts.append(f"{experiment.data.extra_fraction:g} generated images")
    return ", ".join(parts)


def checkpoint_folder(run_dir: Path, rule: str) -> Path:
    """`checkpoints/best`, or the newest epoch's."""
    folder = run_dir / "checkpoints"
    return folder / "best" if rule == "best" else max(folder.glob("epoch_*"), default=folder / "last")


def evaluate_on_ray(session: Session, wanted: Sequence[tuple[Run, Protocol]]) -> Iterator[tuple[Run, Evaluation]]:
    """Evaluate runs, each shard a Ray task; yields each run when its last one has ended.

    Shards that are done are read back, so this resumes. Raises Interrupted.
    """
    import ray

    resources = session.study.resources
    task = ray.remote(evaluate_shard).options(
        num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=2
    )
    pending: dict[Any, tuple[Run, Protocol]] = {}
    left: dict[str, int] = {}
    for run, protocol in wanted:
        left[run.key] = len(protocol.ranges())
        folder = str(checkpoint_folder(run.folder, protocol.checkpoint))
        for start, stop in protocol.ranges():
            reference = task.remote(
                folder, asdict(protocol), start, stop, str(run.folder), resources.cpus_per_worker,
                resources.gpus_per_worker,
            )  # fmt: skip
            pending[reference] = run, protocol
    while pending:
        done, _ = ray.wait(list(pending), timeout=1.0)
        if session.interrupt.requested:
            for reference in pending:
                ray.cancel(reference, force=True)
            session.interrupt.check()
        for reference in done:
            run, protocol = pending.pop(reference)
            ray.get(reference)
            left[run.key] -= 1
            if not left[run.key]:
                evaluation = collect(run.folder, checkpoint_folder(run.folder, protocol.checkpoint), protocol)
                session.view.say(f"{run.key}  {summary(evaluation)}")
                for warning in evaluation.warnings:
                    session.view.say(f"{run.key}  warning: {warning}")
                yield run, evaluation


def evaluate_shard(
    checkpoint: str, protocol: dict[str, Any], start: int, stop: int, run_dir: str, threads: int, gpus: float
) -> None:
    """Attack one range of a split and keep its flags; attacks whose flags were kept are not run again."""
    from trainers.checkpoint import load
    from trainers.data.images import load_splits
    from trainers.evaluation.ranges import evaluate_range, fixed_subset

    wanted = Protocol(**protocol)
    file = _shard_file(Path(run_dir), wanted, start, stop)
    if file.exists():
        return
    import torch

    torch.set_num_threads(threads)
    device = reserved_device(gpus)
    opened = load(Path(checkpoint))
    splits = load_splits(opened.experiment.data)
    split = splits.validation if wanted.split == "held-out" else splits.test
    images = fixed_subset(split, wanted.samples).to(device)
    unfinished = file.with_suffix(".partial")
    known = _read_flags(unfinished) if unfinished.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
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
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(json.dumps(asdict(flags)) + "\n")
    temporary.replace(file)
