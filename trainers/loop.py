"""The training loop: `fit` tells the story of a run from top to bottom; `step` has the hot path.

The same code runs in a plain process, under torchrun and inside Ray Train. It prints nothing, starts no process group
and knows no tracker: it yields one EpochRecord an epoch, and whoever iterates decides what becomes of it.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from trainers.config import Experiment
from trainers.data.batches import TrainingBatches
from trainers.data.images import Splits, load_splits
from trainers.diagnostics.iteration_checks import IterationChecks
from trainers.diagnostics.measure import EpochMeasurement
from trainers.networks import Networks
from trainers.precision import tf32
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks
from trainers.records import EpochRecord
from trainers.run_folder import claim, keep, left_behind, record_epoch
from trainers.schedules import learning_rates, momenta
from trainers.step import TrainingMethod, build_method, train_step
from trainers.totals import Diverged, EpochTotals


def fit(
    experiment: Experiment, run_dir: Path, *, ranks: Ranks, resume: bool = True, splits: Splits | None = None
) -> Iterator[EpochRecord]:
    """Train, yielding one record an epoch, equal on all ranks; continue from the newest whole checkpoint.

    A run that is already finished yields its last record, and needs no data for that. `splits` saves loading the
    data when the caller has them. Raises InvalidInput if `run_dir` holds another experiment, Diverged if the loss is
    not finite, TakenOver if another process has begun to train this run: a node that was given up may still reach the
    storage.
    """
    writer = ranks.broadcast(uuid.uuid4().hex)
    ranks.on_first(partial(claim, experiment, run_dir, resume, writer))
    # What the first rank sees, on every rank: a shared file system may show them different things.
    start, recorded = ranks.on_first(partial(left_behind, run_dir)) if resume else (None, {})
    first_epoch = 0
    if start is not None:
        # Marking the best and appending the record is repeated: a crash may have come between the checkpoint and them.
        ranks.on_first(partial(record_epoch, run_dir, start.path, start.record, recorded))
        recorded[start.record.epoch] = start.record
        first_epoch = start.record.epoch + 1
        if first_epoch >= experiment.epochs:
            yield start.record
            return

    splits = splits if splits is not None else load_splits(experiment.data)
    splits = replace(splits, train=splits.train.to(ranks.device), validation=splits.validation.to(ranks.device))
    batches = TrainingBatches(splits.train, experiment, ranks)
    measure = EpochMeasurement(experiment, splits, ranks)
    checks = IterationChecks(experiment, splits, ranks)
    networks = Networks(experiment, ranks)
    optimizer = _optimizer(networks.trained, experiment)
    if start is not None:
        state = start.training_state()
        networks.restore(start, state)
        optimizer.load_state_dict(state["optimizer"])
    method, settings = build_method(experiment), _step_settings(experiment, len(batches))

    for epoch in range(first_epoch, experiment.epochs):
        began = time.perf_counter()
        of_epoch = settings[epoch * len(batches) : (epoch + 1) * len(batches)]
        totals = _train_epoch(experiment, epoch, networks, method, optimizer, of_epoch, batches, checks, ranks)
        metrics = totals.metrics(epoch, recorded.get(epoch - 1)) | checks.metrics()
        seconds = time.perf_counter() - began
        networks.after_epoch()
        metrics |= measure(networks.evaluated) | {
            "train/learning_rate": of_epoch[-1].learning_rate,
            "train/seconds": seconds,
            "train/images_per_second": len(batches) * batches.rows[0] / seconds,
            "epoch/seconds": time.perf_counter() - began,
        }
        if experiment.compile:
            metrics["train/compiled"] = float(networks.is_compiled)
        broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
        if broken:
            raise Diverged(f"not finite after epoch {epoch + 1}: {', '.join(broken[:5])}")
        # A recorded epoch is never recorded again: after falling back to an older checkpoint its record stands.
        record = ranks.broadcast(recorded.get(epoch) or EpochRecord(epoch, time.time(), metrics))
        state = {"optimizer": optimizer.state_dict(), **networks.state()}
        ranks.on_first(partial(keep, run_dir, writer, experiment, networks.evaluated, state, record, recorded))
        recorded[epoch] = record
        yield record


class _StepSettings(NamedTuple):
    """What changes from step to step; `epsilon_scale` is a fraction of the training attack's ε."""

    learning_rate: float
    momentum: float
    epsilon_scale: float


def _step_settings(experiment: Experiment, steps_per_epoch: int) -> list[_StepSettings]:
    """Of every step of the run."""
    optimizer, steps = experiment.optimizer, experiment.epochs * steps_per_epoch
    rates = learning_rates(experiment.schedule, optimizer.learning_rate, steps)
    momentum = momenta(experiment.schedule, optimizer.momentum, optimizer.momentum_at_peak, steps)
    warmup = experiment.attack.warmup_epochs * steps_per_epoch
    scales = [1.0 if step >= warmup else step / warmup for step in range(steps)]
    return list(map(_StepSettings, rates, momentum, scales))


def _optimizer(trained: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    settings = experiment.optimizer
    return torch.optim.SGD(
        trained.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _train_epoch(
    experiment: Experiment, epoch: int, networks: Networks, method: TrainingMethod, optimizer: torch.optim.Optimizer,
    settings: Sequence[_StepSettings], batches: TrainingBatches, checks: IterationChecks, ranks: Ranks,
) -> EpochTotals:  # fmt: skip
    """The steps of one epoch; `settings` are theirs."""
    networks.parallel.train()
    rows, first = batches.rows
    noise = Noise(generator(ranks.device, experiment.seed, "attack", epoch), rows, first)
    epoch_fraction = epoch / experiment.epochs
    totals = EpochTotals(ranks, rows, comparable=method.tells_abnormal(epoch_fraction))
    with tf32(allowed=experiment.precision == "tf32"):
        for step, (images, labels, attacked) in enumerate(batches.epoch(epoch)):
            now = settings[step]
            optimizer.param_groups[0] |= {"lr": now.learning_rate, "momentum": now.momentum}
            result = train_step(
                networks.parallel, method, optimizer,
                images.contiguous(memory_format=torch.channels_last), labels, noise, attacked=attacked,
                epoch_fraction=epoch_fraction, epsilon_scale=now.epsilon_scale, mean_over_ranks=ranks.mean,
            )  # fmt: skip
            networks.after_step()
            totals.add(result)
            checks.after_step(networks.evaluated, step)
    return totals
