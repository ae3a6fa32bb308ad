"""What is measured after every epoch: accuracies and energies on fixed samples under fixed attacks.

The model is in eval mode throughout. Attacks search in the precision that the run trains in, to be faster where it is.
What is recorded comes from logits in float32, computed by the BN-folded copy from `for_search`. The random numbers of
these attacks are the same in every epoch of every run, so curves of one run are smooth and curves of different runs
compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.attacks.attacker import Attacker, monitor_attack, training_attack
from trainers.attacks.linf import batch_norm_mode
from trainers.config import Experiment, Precision
from trainers.data.images import ImageSet, Splits
from trainers.diagnostics.abnormality import abnormality_statistics
from trainers.energy import energy_statistics, kl_energy_parts
from trainers.evaluation.searching import for_search
from trainers.models.autocast import Autocast
from trainers.precision import tf32
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks

_MONITOR_SEED = 0


@dataclass(frozen=True)
class Responses:
    """Logits [N, K] of a whole set, all ranks together: natural, at the start of the attack, and adversarial."""

    natural: Tensor
    start: Tensor
    adversarial: Tensor
    labels: Tensor

    @property
    def clean_accuracy(self) -> Tensor:
        """Accuracy without an attack, []."""
        return (self.natural.argmax(1) == self.labels).float().mean()

    @property
    def adversarial_accuracy(self) -> Tensor:
        """Accuracy under the attack, []."""
        return (self.adversarial.argmax(1) == self.labels).float().mean()


class EpochMeasurement:
    """The fixed samples of one experiment and the three measurements made on them."""

    def __init__(self, experiment: Experiment, splits: Splits, ranks: Ranks) -> None:
        self._probe = fixed_sample(splits.train, experiment.evaluation.probe_samples)
        self._validation = splits.validation
        self._respond = partial(
            respond, batch_size=experiment.evaluation.batch_size, ranks=ranks, precision=experiment.precision
        )
        own = training_attack(experiment, batch_norm="eval")
        self._on_probe = (own, monitor_attack(float(experiment.attack.epsilon)))
        self._on_validation = (monitor_attack(float(experiment.evaluation.epsilon)),)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """All metrics of one epoch, equal on every rank. `model` is the bare module; it is left as it was."""
        copy = for_search(model)
        (validation,) = self._respond(copy, self._validation, self._on_validation)
        own, reference = self._respond(copy, self._probe, self._on_probe)
        # The accuracy of always naming the most frequent class: 1/K or more.
        chance = float(validation.labels.bincount().max()) / len(validation.labels)
        return (
            {"val/chance_accuracy": chance}
            | _describe("val", validation, "pgd10_accuracy")
            | _describe("probe", own, "adversarial_accuracy")
            | _describe("probe_reference", reference, "pgd10_accuracy")
            | _describe_divergence("probe", own)
            | _describe_divergence("probe_reference", reference)
        )


def fixed_sample(images: ImageSet, count: int) -> ImageSet:
    """At most `count` images, the same in every run: splits are sorted by index, so an even stride mixes classes."""
    indices = torch.linspace(0, len(images) - 1, min(count, len(images))).long().numpy()
    return images.select(indices)


def respond(
    model: nn.Module,
    images: ImageSet,
    attackers: Sequence[Attacker],
    batch_size: int,
    ranks: Ranks,
    precision: Precision,
) -> list[Responses]:
    """Attack every image of a set with every attacker, each rank its share of a batch, and gather the logits of all.

    Attacks search in `precision`; the logits are those of `model` in float32. It is in eval mode meanwhile; the flag of
    every submodule comes back. Attackers meet the same noise, so that of several equal ones one attacks: SAT's own is
    the PGD-10 that all methods are measured with.
    """
    searched = Autocast(model) if precision == "bfloat16" else model
    different = [attacker for place, attacker in enumerate(attackers) if attacker not in attackers[:place]]
    natural: list[Tensor] = []
    attacked: list[list[tuple[Tensor, Tensor]]] = [[] for _ in different]
    with batch_norm_mode(model, "eval"), tf32(allowed=False):
        for batch, first in enumerate(range(0, len(images), batch_size)):
            rows = min(batch_size, len(images) - first)
            own = ranks.share(rows)
            begin, end = first + own.start, first + own.stop
            pixels, labels = images.floats(begin, end), images.labels[begin:end]
            with torch.no_grad():
                natural.append(ranks.concatenate(model(pixels)))
            for attacker, parts in zip(different, attacked, strict=True):
                noise = Noise(generator(pixels.device, _MONITOR_SEED, "monitor", batch), rows, own.start)
                with tf32(allowed=precision == "tf32"):
                    adversarial = attacker(searched, pixels, labels, noise)
                with torch.no_grad():
                    logits = model(adversarial.images)
                    exact = precision == "float32"
                    start_logits = adversarial.start_logits if exact else model(adversarial.start_images)
                parts.append((ranks.concatenate(start_logits), ranks.concatenate(logits)))
    joined = torch.cat(natural)
    responses = [
        Responses(joined, torch.cat([start for start, _ in parts]), torch.cat([end for _, end in parts]), images.labels)
        for parts in attacked
    ]
    return [responses[different.index(attacker)] for attacker in attackers]


def _describe(split: str, responses: Responses, adversarial_name: str) -> dict[str, float]:
    described = {
        "clean_accuracy": float(responses.clean_accuracy),
        adversarial_name: float(responses.adversarial_accuracy),
        "natural_loss/mean": float(F.cross_entropy(responses.natural, responses.labels)),
        "adversarial_loss/mean": float(F.cross_entropy(responses.adversarial, responses.labels)),
        **abnormality_statistics(responses.natural, responses.start, responses.adversarial, responses.labels),
        **energy_statistics(responses.natural, responses.adversarial, responses.labels),
    }
    return {f"{split}/{name}": value for name, value in described.items()}


def _describe_divergence(split: str, responses: Responses) -> dict[str, float]:
    """The two mean energies that KL(p(x) || p(x*)) is the sum of."""
    joint, marginal = kl_energy_parts(responses.natural, responses.adversarial)
    return {
        f"{split}/kl_joint_part/mean": float(joint.double().mean()),
        f"{split}/kl_marginal_part/mean": float(marginal.double().mean()),
    }
