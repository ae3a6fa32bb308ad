"""How long the papers' recipes train on this machine, from a few steps of each with its own net and batch."""

from __future__ import annotations

import statistics

from benchmarks.results import Table
from benchmarks.subjects import ON_WHAT, OurStep, always, images_of
from benchmarks.timing import seconds_of
from trainers.config import Experiment, parse
from trainers.precision import tf32

CIFAR10_IMAGES = 50_000
RECIPES: dict[str, dict[str, str]] = {"fgsm_rs": {}, "n_fgsm": {}, "rice": {}, "weat": {"method": "weat_adv"}}
FORMS = ("float32", "bfloat16")


def measure(rounds: int) -> Table:
    """One row a recipe."""
    rows = []
    for name, changes in RECIPES.items():
        experiment = parse({"recipe": name, "data": "cifar10", **changes})
        images = CIFAR10_IMAGES * experiment.epochs
        speeds = [_images_per_second(experiment, form, rounds) for form in FORMS]
        rows.append(
            (name, experiment.method.name, experiment.model.name, str(experiment.epochs),
             *(f"{speed:.0f}" for speed in speeds), *(duration(images / speed) for speed in speeds))
        )  # fmt: skip
    return Table(
        "The papers' recipes on CIFAR-10",
        f"Not compiled, {ON_WHAT}: median of {rounds} training steps of each recipe's own net and batch, and what they "
        f"make of its epochs of {CIFAR10_IMAGES:,} images, without the measurements at an epoch's end.",
        ("recipe", "method", "net", "epochs", *(f"{what}, {form}" for what in ("images/s", "time") for form in FORMS)),
        tuple(rows),
    )


def _images_per_second(experiment: Experiment, form: str, rounds: int) -> float:
    batch = experiment.optimizer.batch_size
    step = OurStep(experiment, always(images_of(batch)), form)
    with tf32(allowed=False):
        step()
        return batch / statistics.median(seconds_of(step) for _ in range(rounds))


def duration(seconds: float) -> str:
    """For people: 43 min, 9.6 h, 12 days."""
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
