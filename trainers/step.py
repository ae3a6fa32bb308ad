"""One update of a model: attack, forwards, loss, step. `train_step` is the whole hot path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers import catalog
from trainers.attacks.attacker import Attacker, training_attack
from trainers.attacks.linf import Adversarial
from trainers.config import Experiment
from trainers.methods.objectives import Objective, Terms, build_objective
from trainers.methods.step_tensors import AttackedBatch, StepTensors, abnormal, identity, see
from trainers.methods.weight_perturbation import perturbed
from trainers.randomness import Noise


@dataclass(frozen=True)
class TrainingMethod:
    """What a configured method does in a step. `epsilon` is the training attack's, in pixels of [0,1].

    `batch_norm` is the attack's mode. `starts_at_image`: the attack's first gradient is taken at the image itself.
    `weight_perturbation` is None where the method has none; it acts in epochs that begin at the fraction
    `perturbation_start` of all, or later.
    """

    attacker: Attacker
    objective: Objective
    epsilon: float
    batch_norm: str
    starts_at_image: bool
    weight_perturbation: Callable[..., dict[str, Tensor]] | None = None
    perturbation_start: float = 0.0

    def perturbs(self, epoch_fraction: float) -> bool:
        """Whether the update sees perturbed weights in an epoch that begins at this fraction of all."""
        return self.weight_perturbation is not None and epoch_fraction >= self.perturbation_start

    def reuses_start(self, epoch_fraction: float) -> bool:
        """Whether the logits and gradients at the attack's start are those that the update would compute there."""
        return catalog.sees_attack_as_update(self.batch_norm, perturbed=self.perturbs(epoch_fraction))

    def seen_by_attack(self, adversarial: Adversarial, epoch_fraction: float) -> dict[str, Tensor]:
        """What the update needs not compute: the attack has, at its start. By the names of `StepTensors`."""
        if not self.reuses_start(epoch_fraction):
            return {}
        seen = {"start_logits": adversarial.start_logits}
        return seen | ({"natural_gradient": adversarial.start_gradient} if self.starts_at_image else {})

    def tells_abnormal(self, epoch_fraction: float) -> bool:
        """Whether the start's logits are as the update sees the start: reused, or computed again for a regularizer."""
        return self.reuses_start(epoch_fraction) or "start_logits" in self.objective.needs(epoch_fraction)


def build_method(experiment: Experiment) -> TrainingMethod:
    """The functions behind a validated experiment's method and attack."""
    method, attack = experiment.method, experiment.attack
    perturb, start = None, 0.0
    if method.weight_perturbation is not None:
        chosen = method.weight_perturbation.parameters
        entry = catalog.WEIGHT_PERTURBATION[method.weight_perturbation.name]
        perturb = partial(entry.load(), **{name: chosen[name] for name in entry.parameters})
        start = float(chosen.get("start", 0.0))
    return TrainingMethod(
        attacker=training_attack(experiment),
        objective=build_objective(method),
        epsilon=float(attack.epsilon),
        batch_norm=attack.batch_norm,
        starts_at_image=catalog.INNER[method.inner.name].starts_at_image,
        weight_perturbation=perturb,
        perturbation_start=start,
    )


@dataclass(frozen=True)
class StepResult:
    """One step's outcome, all [] and still on the device.

    Sums over this rank's rows, except `loss` and `regularizer`, which are batch means.
    """

    loss: Tensor
    adversarial_correct: Tensor
    abnormal: Tensor
    weight_sum: Tensor
    regularizer: Tensor
    perturbation_norm: Tensor


def train_step(
    model: nn.Module, method: TrainingMethod, optimizer: torch.optim.Optimizer,
    images: Tensor, labels: Tensor, noise: Noise, *, epoch_fraction: float, attacked: Tensor | None = None,
    epsilon_scale: float = 1.0, mean_over_ranks: Callable[[Tensor], Tensor] = identity,
) -> StepResult:  # fmt: skip
    """One update: images [B, C, H, W] in [0,1] and labels [B] of this rank. No host synchronization.

    The attack runs on the bare module: no collective but those of a synchronized batch norm where it is crafted in
    train mode, four small ones a layer in each of its steps. The outer loss goes through `model`, which under DDP
    averages the gradients once. Natural and adversarial images are two forwards: one joined forward would give other
    batch statistics than the papers'. Images that are not `attacked` [B] (default: all are) keep their place in the
    batch, with x* = x.
    """
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    objective, needs = method.objective, method.objective.needs(epoch_fraction)
    adversarial = method.attacker(bare, images, labels, noise, epsilon_scale)
    if attacked is not None:
        kept = torch.where(attacked[:, None, None, None], adversarial.images, images)
        adversarial = replace(adversarial, images=kept)
    noisy = images + noise.uniform(images, -method.epsilon, method.epsilon) if "noisy_gradient" in needs else None
    batch = AttackedBatch(images, labels, adversarial, noisy, method.seen_by_attack(adversarial, epoch_fraction))
    look = partial(see, batch, needs, bare, mean_over_ranks=mean_over_ranks)

    perturbation = {}
    if method.weight_perturbation is not None and method.perturbs(epoch_fraction):
        perturbation = method.weight_perturbation(
            bare,
            lambda forward: objective.terms(look(forward, forward), epoch_fraction).total,
            mean_over_ranks=mean_over_ranks,
        )
    with perturbed(bare, perturbation):
        seen = look(model, bare)
        terms = objective.terms(seen, epoch_fraction)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _result(batch, seen, terms, attacked)


def _result(batch: AttackedBatch, seen: StepTensors, terms: Terms, attacked: Tensor | None) -> StepResult:
    with torch.no_grad():
        zero = terms.total.new_zeros(())
        start_logits = batch.adversarial.start_logits if seen.start_logits is None else seen.start_logits
        easier = abnormal(start_logits, seen.adversarial_logits, batch.labels)
        if attacked is not None:
            easier &= attacked
        return StepResult(
            loss=terms.total.detach(),
            adversarial_correct=(seen.adversarial_logits.argmax(1) == batch.labels).sum(),
            abnormal=easier.sum(),
            weight_sum=zero + len(batch.labels) if terms.weights is None else terms.weights.sum(),
            regularizer=zero if terms.regularizer is None else terms.regularizer,
            perturbation_norm=(batch.adversarial.images - batch.images).flatten(1).norm(dim=1).sum(),
        )
