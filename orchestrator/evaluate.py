"""Final evaluation: fixed shards, one Ray task each (or one after the other without Ray), kept as they finish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orchestrator.journal import EVALUATION_FILE, Run
from search_spaces.study import Confirm
from trainers import catalog
from trainers.config import Experiment
from trainers.evaluation_result import ATTACKS, Evaluation, Flags, Protocol
from trainers.pixels import pixels
from trainers.problems import InvalidInput, unknown_name

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
    )


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
        ranges = shard_ranges(protocol)
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


def evaluate_checkpoint(
    checkpoint: Path, *, attack: str, samples: int, epsilon: str | None, seed: int, shard: int, batch_size: int,
    output: Path | None, data_dir: Path | None, threads: int | None, console: Console,
) -> None:  # fmt: skip
    """`orchestrator evaluate`: attack one checkpoint in this process and print what stands after each attack."""
    if attack not in ATTACKS:
        raise InvalidInput.single("--attack", unknown_name(attack, ATTACKS, "attack"))
    if epsilon is not None and not 0 < pixels(epsilon) <= 1:
        raise InvalidInput.single("--epsilon", f"{epsilon!r}: must be above 0 and at most 1")
    for option, value in (("-n", samples), ("--shard", shard), ("--batch-size", batch_size)):
        if value < 1:
            raise InvalidInput.single(option, f"{value}: must be at least 1")
    folder = checkpoint / "checkpoints" / "best" if (checkpoint / "checkpoints").is_dir() else checkpoint

    from trainers.checkpoint import load
    from trainers.data.images import load_splits
    from trainers.evaluation import evaluate_range, fixed_subset
    from trainers.ranks import Ranks

    opened = load(folder)
    experiment = opened.experiment
    if data_dir is not None:
        data = experiment.data.model_copy(update={"directory": str(data_dir)})
        experiment = experiment.model_copy(update={"data": data})
    settings = Confirm(attack=attack, samples=samples, seed=seed, shard=shard, batch_size=batch_size)  # type: ignore[arg-type]
    protocol = protocol_for(experiment, settings, f"epoch {opened.record.epoch}")
    if epsilon is not None:
        protocol = replace(protocol, epsilon=epsilon)
    if threads:
        import torch

        torch.set_num_threads(threads)
    device = Ranks.current().device
    images = fixed_subset(load_splits(experiment.data).test, protocol.samples).to(device)
    model = opened.load_model(device)
    console.print(f"{folder}\n{protocol.key}")
    parts = []
    for start, stop in shard_ranges(protocol):
        with console.status("") as status:

            def show(stage: str, bounds: str = f"{start}-{stop}", update: Any = status.update) -> None:
                update(f"images {bounds}: {stage}")

            parts.append(evaluate_range(model, images, protocol, start, stop, progress=show))
        console.print(f"images {start}-{stop}  {_standing(parts[-1])}")
    evaluation = Evaluation(protocol, experiment.digest(), opened.record.epoch, reduce(Flags.merged, parts))
    console.print(f"robust accuracy {100 * evaluation.robust_accuracy:.2f} %  ({summary(evaluation)})")
    if output is not None:
        evaluation.save(output)
        console.print(f"flags of every image: {output}")


def _standing(flags: Flags) -> str:
    return "  ".join(f"{stage} {sum(standing)}" for stage, standing in flags.standing.items())


def shard_ranges(protocol: Protocol) -> list[tuple[int, int]]:
    """Index ranges of the protocol's fixed shard length."""
    return [
        (start, min(start + protocol.shard, protocol.samples)) for start in range(0, protocol.samples, protocol.shard)
    ]


def evaluate_shard(
    checkpoint: str, protocol: dict[str, Any], start: int, stop: int, run_dir: str, threads: int
) -> None:
    """Attack one range of the test set and keep its flags; a range that was kept before is not attacked again."""
    from trainers.checkpoint import load
    from trainers.data.images import load_splits
    from trainers.evaluation import evaluate_range, fixed_subset
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
    flags = evaluate_range(opened.load_model(device), images, wanted, start, stop)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(flags)) + "\n")
    temporary.replace(file)


def collect(run_dir: Path, checkpoint: Path, protocol: Protocol) -> Evaluation:
    """Merge the shards of a run and write its evaluation."""
    from trainers.checkpoint import load

    parts = [_read_flags(_shard_file(run_dir, protocol, *bounds)) for bounds in shard_ranges(protocol)]
    opened = load(checkpoint)
    flags = reduce(Flags.merged, parts)
    evaluation = Evaluation(protocol, opened.experiment.digest(), opened.record.epoch, flags)
    evaluation.save(run_dir / EVALUATION_FILE)
    return evaluation


def summary(evaluation: Evaluation) -> str:
    """For example `clean 95.31 %  apgd-ce 60.94 %  …`."""
    return "  ".join(f"{stage} {100 * value:.2f} %" for stage, value in evaluation.accuracies.items())


def _shard_file(run_dir: Path, protocol: Protocol, start: int, stop: int) -> Path:
    return run_dir / "shards" / f"{protocol.digest}-{start:06d}-{stop:06d}.json"


def _read_flags(file: Path) -> Flags:
    content = json.loads(file.read_text())
    standing = {stage: tuple(values) for stage, values in content["standing"].items()}
    return Flags(content["start"], content["stop"], standing)
