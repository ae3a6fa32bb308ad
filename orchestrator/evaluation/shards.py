"""One shard of a final evaluation: a fixed range of images attacked in a process of its own, its flags kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path

from orchestrator.host import disk
from orchestrator.host.devices import reserved_device
from orchestrator.host.tracebacks import keep_traceback
from trainers.config import Data
from trainers.evaluation.consistency import with_warnings
from trainers.evaluation.result import EvaluationResult, Flags, Protocol
from trainers.whole_files import write_whole

ERROR_FILE = "evaluation_error.txt"


@dataclass(frozen=True)
class Shard:
    """The range `bounds` of the images of `data` that `protocol` names, to be attacked for a run of this folder."""

    checkpoint: Path
    data: Data
    protocol: Protocol
    bounds: tuple[int, int]
    run_dir: Path


def attempt_shard(shard: Shard, threads: int, gpus: float) -> str | None:
    """`evaluate_shard`; of an error it keeps the traceback in the run's folder, and returns one line about it."""
    try:
        evaluate_shard(shard, threads, gpus)
    except Exception as error:
        if disk.is_full(error):
            raise
        return keep_traceback(shard.run_dir, error, ERROR_FILE)
    return None


def evaluate_shard(shard: Shard, threads: int, gpus: float) -> None:
    """Attack the images of a shard and keep their flags: attacks that have them are not run again."""
    from trainers.checkpoint import load
    from trainers.evaluation.ranges import evaluate_range, evaluation_images

    protocol = shard.protocol
    file = _shard_file(shard.run_dir, protocol, *shard.bounds)
    if file.exists():
        return
    import torch

    torch.set_num_threads(threads)
    device = reserved_device(gpus)
    model = load(shard.checkpoint).load_model(device)
    images = evaluation_images(shard.data, protocol.samples, protocol.split).to(device)
    unfinished = file.with_suffix(".partial")
    known = _read_flags(unfinished) if unfinished.exists() else None
    keep = partial(_write_flags, file=unfinished)
    flags = evaluate_range(model, images, protocol, *shard.bounds, known=known, keep=keep)
    _write_flags(flags, file)
    unfinished.unlink(missing_ok=True)


def collect(run_dir: Path, checkpoint: Path, protocol: Protocol) -> EvaluationResult:
    """Merge the shards of a run to its evaluation."""
    from trainers.checkpoint import load

    parts = [_read_flags(_shard_file(run_dir, protocol, *bounds)) for bounds in protocol.ranges()]
    opened = load(checkpoint)
    flags = reduce(Flags.merged, parts)
    return with_warnings(EvaluationResult(protocol, opened.experiment.digest(), opened.record.epoch, flags))


def summary(evaluation: EvaluationResult) -> str:
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
