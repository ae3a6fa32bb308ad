"""What is measured after every epoch: accuracies and energies on fixed samples under fixed attacks.

The model is in eval mode throughout; the random numbers of these attacks depend on the seed alone (not on the epoch or
the training), so curves of one run are smooth and curves of different runs compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from trainers import catalog
from trainers.attacks.linf import Adversarial
from trainers.attacks.pgd import pgd
from trainers.config import Attack, Experiment, Method
from trainers.data.images import ImageSet, Splits
from trainers.energy import energy_statistics
from trainers.methods.step_tensors import abnormal
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks

MONITOR_STEPS = 10
_MONITOR_SEED = 0


class Attacker(Protocol):
    """An attack with its settings bound; `scale` multiplies epsilon and the step size (training may warm up)."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, scale: float = 1.0
    ) -> Adversarial:
        """Attack images [B, C, H, W] with labels [B]."""


def training_attack(method: Method, attack: Attack, batch_norm: str) -> Attacker:
    """The inner attack of a method with its settings bound."""
    function = catalog.INNER[method.inner.name].load()

    def attacker(model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, scale: float = 1.0) -> Adversarial:
        result: Adversarial = function(
            model, images, labels,
            epsilon=scale * float(attack.epsilon), step_size=scale * float(attack.step_size), steps=attack.steps,
            batch_norm=batch_norm, noise=noise, **method.inner.parameters,
        )  # fmt: skip
        return result

    return attacker


def monitor_attack(epsilon: float) -> Attacker:
    """PGD-10 on the cross-entropy with steps of ε/4, one restart, final iterate, eval-mode batch norm."""

    def attacker(model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, scale: float = 1.0) -> Adversarial:
        return pgd(
            model, images, labels,
            epsilon=scale * epsilon, step_size=scale * epsilon / 4, steps=MONITOR_STEPS, batch_norm="eval", noise=noise,
        )  # fmt: skip

    return attacker


@dataclass(frozen=True)
class Responses:
    """Logits [N, K] of a whole set, all ranks together: natural, at the start of the attack, and adversarial."""

    natural: Tensor
    start: Tensor
    adversarial: Tensor
    labels: Tensor


class EpochMeasurement:
    """The fixed samples of one experiment and the three measurements made on them."""

    def __init__(self, experiment: Experiment, splits: Splits, ranks: Ranks) -> None:
        samples = min(experiment.evaluation.probe_samples, len(splits.train))
        # The training split is sorted by index, not by class: an even stride is a fixed, class-mixed sample.
        stride = torch.linspace(0, len(splits.train) - 1, samples).long().numpy()
        self._probe = splits.train.select(stride)
        self._validation = splits.validation
        self._batch_size = experiment.evaluation.batch_size
        self._ranks = ranks
        self._own = training_attack(experiment.method, experiment.attack, batch_norm="eval")
        self._reference = monitor_attack(float(experiment.attack.epsilon))
        self._monitor = monitor_attack(float(experiment.evaluation.epsilon))

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """All metrics of one epoch, equal on every rank. `model` is the bare module; its mode is restored."""
        training = model.training
        model.eval()
        try:
            validation = respond(model, self._validation, self._monitor, self._batch_size, self._ranks)
            own = respond(model, self._probe, self._own, self._batch_size, self._ranks)
            reference = respond(model, self._probe, self._reference, self._batch_size, self._ranks)
        finally:
            model.train(training)
        return (
            _describe("val", validation, "pgd10_accuracy")
            | _describe("probe", own, "adversarial_accuracy")
            | _describe("probe_reference", reference, "pgd10_accuracy")
        )


def respond(model: nn.Module, images: ImageSet, attacker: Attacker, batch_size: int, ranks: Ranks) -> Responses:
    """Attack every image of a set, each rank its share of every batch, and gather the logits of all."""
    collected: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for batch, first in enumerate(range(0, len(images), batch_size)):
        rows = min(batch_size, len(images) - first)
        own = ranks.share(rows)
        begin, end = first + own.start, first + own.stop
        pixels, labels = images.floats(begin, end), images.labels[begin:end]
        noise = Noise(generator(pixels.device, _MONITOR_SEED, "monitor", batch), rows, own.start)
        attacked = attacker(model, pixels, labels, noise)
        with torch.no_grad():
            parts = (model(pixels), attacked.start_logits, model(attacked.images))
        for logits, part in zip(collected, parts, strict=True):
            logits.append(ranks.concatenate(part))
    natural, start, adversarial = map(torch.cat, collected)
    return Responses(natural, start, adversarial, images.labels)


def _describe(split: str, responses: Responses, adversarial_name: str) -> dict[str, float]:
    natural, adversarial, labels = responses.natural, responses.adversarial, responses.labels
    statistics = energy_statistics(natural, adversarial, labels)
    abnormal_count = int(abnormal(responses.start, adversarial, labels).sum())
    described = {
        "clean_accuracy": float((natural.argmax(1) == labels).float().mean()),
        adversarial_name: float((adversarial.argmax(1) == labels).float().mean()),
        "abnormal_count": float(abnormal_count),
        "abnormal_fraction": abnormal_count / len(labels),
        **statistics,
    }
    return {f"{split}/{name}": value for name, value in described.items()}
