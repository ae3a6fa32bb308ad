"""What the measurements at an epoch's end cost, against the training of the epoch."""

from __future__ import annotations

import statistics
from itertools import product

from benchmarks.results import Table
from benchmarks.subjects import BATCH, DEVICE, ON_WHAT, OurStep, always, images_of, settings_of, the_net
from benchmarks.timing import seconds_of
from trainers.config import Experiment, Precision
from trainers.data.images import Splits
from trainers.diagnostics.measure import EpochMeasurement
from trainers.models.build import build_model
from trainers.precision import tf32
from trainers.ranks import Ranks

METHODS = ("fgsm_rs", "sat", "weat_adv")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def measure(rounds: int) -> Table:
    """One row a method, all settings those of CIFAR-10."""
    rows = []
    for name, precision in product(METHODS, PRECISIONS):
        experiment = settings_of(name).model_copy(update={"precision": precision})
        step = OurStep(experiment, always(images_of(BATCH)), precision)
        with tf32(allowed=False):
            step()
            training = experiment.steps_per_epoch * statistics.median(seconds_of(step) for _ in range(rounds))
        measuring = _seconds_of_measuring(experiment)
        share = measuring / (training + measuring)
        rows.append((name, precision, f"{training:.0f}", f"{measuring:.1f}", f"{share:.1%}"))
    data, evaluation = experiment.data, experiment.evaluation
    return Table(
        "Measurements at an epoch's end",
        f"{the_net()}, {ON_WHAT}; what is measured after every epoch: clean and PGD-10 accuracy of "
        f"{data.holdout} held-out images, energies of {evaluation.probe_samples} training images under the method's "
        f"own attack and PGD-10, with searches in the precision of training. An epoch is "
        f"{experiment.steps_per_epoch} steps, from the median of {rounds}.",
        ("method", "precision", "training of an epoch, s", "measuring, s", "of the whole"),
        tuple(rows),
    )


def _seconds_of_measuring(experiment: Experiment) -> float:
    splits = Splits(
        *(images_of(count).to(DEVICE) for count in (experiment.evaluation.probe_samples, experiment.data.holdout, 1))
    )
    measured = EpochMeasurement(experiment, splits, Ranks(0, 1, DEVICE))
    model = build_model(experiment).to(DEVICE)
    return seconds_of(lambda: measured(model))
