"""Looks at the model inside an epoch: catastrophic overfitting can set in, and pass again, between two epochs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.attacks.attacker import monitor_attack
from trainers.config import Experiment
from trainers.data.images import Splits
from trainers.diagnostics.measure import fixed_sample, respond
from trainers.diagnostics.overfitting import CHECKED_ACCURACY, CHECKED_DELTA_ENERGY
from trainers.energy import delta_energies
from trainers.ranks import Ranks

SAMPLES = 128
STEPS = 5


class IterationChecks:
    """Robust accuracy and mean ΔE(x) every `evaluation.check_every` steps of an epoch, on the same few images.

    128 images of the probe set (all of a smaller one) under PGD-5 with steps of ε/4 at the training ε: the attack and
    the batch size of FGSM-RS's published online rule (Wong et al. 2020, arXiv 2001.03994), with images and noise that
    never change, so that two checks differ by the model alone. Eval-mode batch norm, each rank with its own running
    statistics. Training does not notice: no number of its random streams is drawn, no gradient, buffer or flag is
    touched; only its time counts the checks in.
    """

    def __init__(self, experiment: Experiment, splits: Splits, ranks: Ranks) -> None:
        self._every = experiment.evaluation.check_every
        probe = fixed_sample(splits.train, experiment.evaluation.probe_samples)
        self._images = fixed_sample(probe, SAMPLES)
        self._attacker = monitor_attack(float(experiment.attack.epsilon), STEPS)
        self._batch_size = experiment.evaluation.batch_size
        self._ranks = ranks
        self._precision = experiment.precision
        self._measured: dict[str, Tensor] = {}

    def after_step(self, model: nn.Module, step: int) -> None:
        """To be called after every step (0-based) of an epoch with the bare module; checks when it is time to."""
        iteration = step + 1
        if self._every is None or iteration % self._every:
            return
        (seen,) = respond(model, self._images, [self._attacker], self._batch_size, self._ranks, self._precision)
        delta_energy, _ = delta_energies(seen.natural, seen.adversarial, seen.labels)
        self._measured[CHECKED_ACCURACY.format(iteration=iteration)] = seen.adversarial_accuracy
        self._measured[CHECKED_DELTA_ENERGY.format(iteration=iteration)] = delta_energy.mean()

    def metrics(self) -> dict[str, float]:
        """What the checks of this epoch saw, as metrics of its record, equal on every rank; the next starts empty."""
        measured, self._measured = self._measured, {}
        if not measured:
            return {}
        return dict(zip(measured, torch.stack([*measured.values()]).tolist(), strict=True))
