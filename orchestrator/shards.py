"""The final evaluation of a study's runs: fixed shards, one Ray task each, kept as they finish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.journal import EVALUATION_FILE, Run
from search_spaces.study import Confirm
from trainers import catalog
from trainers.config import Experiment
from trainers.evaluation.consistency import with_warnings
from trainers.evaluation.result import Evaluation, Flags, Protocol

if TYPE_CHECKING:
    from orchestrator.sweep import Session


def protocol_for(experiment: Experiment, settings: Confirm, checkpoint: str) -> Protocol:
    """The protocol of a study's confirmations."""
    available = catalog.DATASETS[experiment.data.name].num_test
    size = f"{experiment.data.size}x{experiment.data.size}" if experiment.data.name == "digits" else ""
    return Protocol(
        data=experiment.data.name + (f" {size}" if size else ""),
        split="test",
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


def evaluate_on_ray(session: Session, runs: Sequence[Run]) -> None:
    """Evaluate runs, each shard a Ray task. Shards that are done are read back, so this resumes."""
    import ray

    study, view = session.study, session.view
    resources = study.resources
    task = ray.remote(evaluate_shard).options(
        num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=2
    )
    pending: dict[Any, Run] = {}
    left: dict[str, int] = {}
    for run in runs:
        protocol = protocol_for(run.experiment, study.confirm, study.search.checkpoint)
        ranges = protocol.ranges()
        left[run.key] = len(ranges)
        for start, stop in ranges:
            folder = checkpoint_folder(run.folder, study.search.checkpoint)
            reference = task.remote(
                str(folder), asdict(protocol), start, stop, str(run.folder), resources.cpus_per_worker
            )
            pending[reference] = run
    while pending:
        done, _ = ray.wait(list(pending), timeout=1.0)
        if session.interrupt.requested:
            for reference in pending:
                ray.cancel(reference, force=True)
            session.interrupt.check()
        for reference in done:
            run = pending.pop(reference)
            ray.get(reference)
            left[run.key] -= 1
            if not left[run.key]:
                protocol = protocol_for(run.experiment, study.confirm, study.search.checkpoint)
                evaluation = collect(run.folder, checkpoint_folder(run.folder, study.search.checkpoint), protocol)
                view.say(f"{run.key}  {summary(evaluation)}")
                for warning in evaluation.warnings:
                    view.say(f"{run.key}  warning: {warning}")


def evaluate_shard(
    checkpoint: str, protocol: dict[str, Any], start: int, stop: int, run_dir: str, threads: int
) -> None:
    """Attack one range of the test set and keep its flags; attacks whose flags were kept are not run again."""
    from trainers.checkpoint import load
    from trainers.data.images import load_splits
    from trainers.evaluation.ranges import evaluate_range, fixed_subset
    from trainers.ranks import Ranks

    wanted = Protocol(**protocol)
    file = _shard_file(Path(run_dir), wanted, start, stop)
    if file.exists():
        return
    import torch

    torch.set_num_threads(threads)
    device = Ranks.current().device
    opened = load(Path(checkpoint))
    images = fixed_subset(load_splits(opened.experiment.data).test, wanted.samples).to(device)
    unfinished = file.with_suffix(".partial")
    known = _read_flags(unfinished) if unfinished.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    flags = evaluate_range(
        opened.load_model(device), images, wanted, start, stop, known=known, keep=partial(_write_flags, file=unfinished)
    )
    _write_flags(flags, file)
    unfinished.unlink(missing_ok=True)


def collect(run_dir: Path, checkpoint: Path, protocol: Protocol) -> Evaluation:
    """Merge the shards of a run and write its evaluation."""
    from trainers.checkpoint import load

    parts = [_read_flags(_shard_file(run_dir, protocol, *bounds)) for bounds in protocol.ranges()]
    opened = load(checkpoint)
    flags = reduce(Flags.merged, parts)
    evaluation = with_warnings(Evaluation(protocol, opened.experiment.digest(), opened.record.epoch, flags))
    evaluation.save(run_dir / EVALUATION_FILE)
    return evaluation


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
