"""The training loop: `fit` tells the story of a run from top to bottom, `train_step` is the whole hot path.

The same code runs in a plain process, under torchrun and inside Ray Train. It prints nothing, starts no process group
and knows no tracker: it yields one EpochRecord an epoch, and whoever iterates decides what becomes of it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers import checkpoint
from trainers.config import Experiment
from trainers.data.batches import TrainingBatches
from trainers.data.images import Splits, load_splits
from trainers.iteration_checks import IterationChecks
from trainers.measure import Attacker, EpochMeasurement, training_attack
from trainers.methods.objective import Objective, build_objective
from trainers.methods.regularizers import abnormal, identity
from trainers.models.build import build_model
from trainers.overfitting import ROBUST_ACCURACY
from trainers.problems import InvalidInput
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks
from trainers.records import EpochRecord, append_record, read_records
from trainers.schedules import learning_rates

EXPERIMENT_FILE = "experiment.yaml"
_IDENTITY_FILE = "digest.json"


class Diverged(RuntimeError):
    """The loss is not finite: the run can't go on."""


@dataclass(frozen=True)
class StepResult:
    """One step's outcome, still on the device: sums over this rank's rows, except `loss` (the batch's mean)."""

    loss: Tensor
    adversarial_correct: Tensor
    abnormal: Tensor
    weight_sum: Tensor
    regularizer: Tensor


def train_step(
    model: nn.Module, attacker: Attacker, objective: Objective, optimizer: torch.optim.Optimizer,
    images: Tensor, labels: Tensor, noise: Noise, *, progress: float,
    mean_over_ranks: Callable[[Tensor], Tensor] = identity,
) -> StepResult:  # fmt: skip
    """One update: images [B, C, H, W] in [0,1] and labels [B] of this rank. No host synchronization.

    The attack runs on the bare module (no collective, whatever the number of its steps); the outer loss goes through
    `model`, which under DDP averages the gradients once. Natural and adversarial images are two forwards: one joined
    forward would give other batch statistics than the papers'.
    """
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    adversarial = attacker(bare, images, labels, noise)
    natural_logits = model(images) if objective.needs_natural(progress) else None
    adversarial_logits = model(adversarial.images)
    terms = objective.terms(
        natural_logits, adversarial_logits, labels,
        start_logits=adversarial.start_logits, progress=progress, mean_over_ranks=mean_over_ranks,
    )  # fmt: skip
    optimizer.zero_grad(set_to_none=True)
    terms.total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        zero = terms.total.new_zeros(())
        return StepResult(
            loss=terms.total.detach(),
            adversarial_correct=(adversarial_logits.argmax(1) == labels).sum(),
            abnormal=abnormal(adversarial.start_logits, adversarial_logits, labels).sum(),
            weight_sum=zero + len(labels) if terms.weights is None else terms.weights.sum(),
            regularizer=zero if terms.regularizer is None else terms.regularizer,
        )


def fit(
    experiment: Experiment, run_dir: Path, *, ranks: Ranks, resume: bool = True, splits: Splits | None = None
) -> Iterator[EpochRecord]:
    """Train, yielding one record an epoch, equal on all ranks; continue from the newest whole checkpoint.

    A run that is already finished says its last record again. `splits` saves loading the data when the caller has
    them. Raises InvalidInput if `run_dir` holds another experiment, Diverged if the loss is not finite.
    """
    _claim(experiment, run_dir, ranks, resume)
    splits = splits if splits is not None else load_splits(experiment.data)
    splits = Splits(*(part.to(ranks.device) for part in (splits.train, splits.validation, splits.test)))
    batches = TrainingBatches(splits.train, experiment, ranks)
    measure = EpochMeasurement(experiment, splits, ranks)
    checks = IterationChecks(experiment, splits, ranks)
    bare = build_model(experiment).to(ranks.device)
    bare = bare.to(memory_format=torch.channels_last)
    settings = experiment.optimizer
    optimizer = torch.optim.SGD(
        bare.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    start = checkpoint.latest(run_dir) if resume else None
    known = read_records(run_dir) if resume else []
    best = -1.0
    if start is not None:
        bare.load_state_dict(start.weights())
        optimizer.load_state_dict(start.training_state()["optimizer"])
        if start.record.epoch not in {record.epoch for record in known} and ranks.is_first:
            append_record(run_dir, start.record)
        best = max(
            (record.metrics[ROBUST_ACCURACY] for record in known if record.epoch < start.record.epoch), default=best
        )
        if start.record.metrics[ROBUST_ACCURACY] > best:
            # Again, for the crash may have come before it was marked; epochs after this one are marked anew.
            best = start.record.metrics[ROBUST_ACCURACY]
            if ranks.is_first:
                checkpoint.mark_best(run_dir, start.path)
        if start.record.epoch + 1 >= experiment.epochs:
            yield start.record
            return
    recorded = {record.epoch: record for record in known}

    model = ranks.data_parallel(bare)
    rates = learning_rates(experiment.schedule, settings.learning_rate, experiment.epochs * len(batches))
    attacker = training_attack(experiment.method, experiment.attack, experiment.attack.batch_norm)
    objective = build_objective(experiment.method)

    for epoch in range(0 if start is None else start.record.epoch + 1, experiment.epochs):
        began = time.perf_counter()
        model.train()
        rows, first = batches.rows
        noise = Noise(generator(ranks.device, experiment.seed, "attack", epoch), rows, first)
        totals = EpochTotals(ranks, rows, same_batch_norm=experiment.attack.batch_norm == "train")
        for step, (images, labels) in enumerate(batches.epoch(epoch)):
            optimizer.param_groups[0]["lr"] = rates[epoch * len(batches) + step]
            images = images.contiguous(memory_format=torch.channels_last)
            result = train_step(
                model, attacker, objective, optimizer, images, labels, noise,
                progress=epoch / experiment.epochs, mean_over_ranks=ranks.mean,
            )  # fmt: skip
            totals.add(result)
            checks.after_step(bare, step)
        metrics = totals.metrics(epoch, recorded.get(epoch - 1)) | checks.metrics()
        seconds = time.perf_counter() - began
        ranks.average_buffers(bare)
        metrics |= measure(bare) | {
            "train/learning_rate": rates[(epoch + 1) * len(batches) - 1],
            "train/seconds": seconds,
            "train/images_per_second": len(batches) * rows / seconds,
            "epoch/seconds": time.perf_counter() - began,
        }
        broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
        if broken:
            raise Diverged(f"not finite after epoch {epoch}: {', '.join(broken[:5])}")
        # A recorded epoch is never recorded again: after falling back to an older checkpoint its record stands.
        record = ranks.broadcast(recorded.get(epoch) or EpochRecord(epoch, time.time(), metrics))
        recorded[epoch] = record
        if ranks.is_first:
            state = {"optimizer": optimizer.state_dict()}
            folder = checkpoint.save(run_dir, experiment, bare, state, record)
            if record.metrics[ROBUST_ACCURACY] > best:
                checkpoint.mark_best(run_dir, folder)
            if epoch not in {known_record.epoch for known_record in known}:
                append_record(run_dir, record)
        best = max(best, record.metrics[ROBUST_ACCURACY])
        ranks.barrier()
        yield record


class EpochTotals:
    """Accumulates step results on the device; one synchronization and one reduction over ranks per epoch."""

    def __init__(self, ranks: Ranks, batch_size: int, *, same_batch_norm: bool) -> None:
        self._same_batch_norm = same_batch_norm
        self._ranks = ranks
        self._batch_size = batch_size
        self._sums = torch.zeros(5, dtype=torch.float64, device=ranks.device)
        self._bad_step = torch.full((), -1, dtype=torch.long, device=ranks.device)
        self._steps = 0

    def add(self, result: StepResult) -> None:
        """Add one step of this rank."""
        parts = (
            result.loss,
            result.adversarial_correct,
            result.abnormal,
            result.weight_sum,
            result.regularizer,
        )
        self._sums += torch.stack([part.double() for part in parts])
        bad = ~torch.isfinite(result.loss) & (self._bad_step < 0)
        self._bad_step = torch.where(bad, self._steps, self._bad_step)
        self._steps += 1

    def metrics(self, epoch: int, before: EpochRecord | None) -> dict[str, float]:
        """The epoch's training metrics over all ranks. Raises Diverged if a loss was not finite."""
        loss, correct, abnormal_count, weights, regularizer = self._ranks.sum(self._sums).tolist()
        bad_step = int(self._bad_step)
        if loss != loss or loss in (float("inf"), float("-inf")):
            energies = {
                name: value
                for name, value in (before.metrics if before else {}).items()
                if name.endswith("energy/mean")
            }
            raise Diverged(
                f"the loss is not finite at epoch {epoch}, step {'unknown' if bad_step < 0 else bad_step}; "
                f"energies of the epoch before: {energies or 'none'}"
            )
        images = self._steps * self._batch_size
        mean_over_steps = self._steps * self._ranks.world_size
        # After an attack in eval mode, start and end were seen by different batch norms: nothing to compare.
        abnormality = {"train/abnormal_count": abnormal_count, "train/abnormal_fraction": abnormal_count / images}
        return {
            "train/loss": loss / mean_over_steps,
            "train/regularizer": regularizer / mean_over_steps,
            "train/adversarial_accuracy": correct / images,
            "train/weight/mean": weights / images,
            **(abnormality if self._same_batch_norm else {}),
        }


def _claim(experiment: Experiment, run_dir: Path, ranks: Ranks, resume: bool) -> None:
    """Make the run folder this experiment's; refuse, on every rank, one that holds another's."""
    refusal = ranks.broadcast(_refusal(experiment, run_dir, resume) if ranks.is_first else None)
    if refusal is not None:
        raise InvalidInput.single(str(run_dir), refusal)
    if ranks.is_first:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (EXPERIMENT_FILE, experiment.to_yaml()),
            (_IDENTITY_FILE, json.dumps({"digest": experiment.digest()}) + "\n"),
        ):
            staging = run_dir / f".{name}"
            staging.write_text(content)
            staging.replace(run_dir / name)
    ranks.barrier()


def _refusal(experiment: Experiment, run_dir: Path, resume: bool) -> str | None:
    identity = run_dir / _IDENTITY_FILE
    held = json.loads(identity.read_text())["digest"] if identity.exists() else None
    if held is None or (held == experiment.digest() and resume):
        return None
    what = "another experiment" if held != experiment.digest() else "this experiment already"
    return f"holds {what} (digest {held}); choose another folder"
