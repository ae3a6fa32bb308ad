"""Under which protocol a run is evaluated, and which of its checkpoints."""

from __future__ import annotations

from pathlib import Path

from search_spaces.study import Confirm
from trainers import catalog
from trainers.config import Experiment
from trainers.evaluation.result import Protocol


def protocol_for(experiment: Experiment, settings: Confirm, checkpoint: str, split: str = "test") -> Protocol:
    """The protocol of a study's confirmations; of its ladder on the `held-out` slice of the training images."""
    held_out = split == "held-out"
    available = experiment.data.holdout if held_out else catalog.DATASETS[experiment.data.name].num_test
    size = f"{experiment.data.size}x{experiment.data.size}" if experiment.data.name == "digits" else ""
    return Protocol(
        data=experiment.data.name + (f" {size}" if size else ""),
        split=split,
        samples=min(settings.samples, available),
        epsilon=str(experiment.evaluation.epsilon.plain()),
        attack=settings.attack,
        seed=settings.seed,
        shard=settings.shard,
        batch_size=settings.batch_size,
        checkpoint=checkpoint,
        training=training_text(experiment),
    )


def training_text(experiment: Experiment) -> str:
    """What a number owes to the size of its training: `small width=8, 3 epochs`, and the share of generated images.

    How many images there were, unless they were as many as the data set leaves to train on by default.
    """
    model, data = experiment.model, experiment.data
    dataset = catalog.DATASETS[data.name]
    defaults = catalog.MODELS[model.name].fields
    changed = [f"{key}={value}" for key, value in model.parameters.items() if value != defaults[key].default]
    parts = [" ".join([model.name, *changed]), f"{experiment.epochs} epochs"]
    if data.num_train != dataset.num_train - dataset.holdout:
        parts.append(f"{data.num_train} images")
    if data.extra_fraction is not None:
        parts.append(f"{data.extra_fraction:g} generated images")
    return ", ".join(parts)


def checkpoint_folder(run_dir: Path, checkpoint: str) -> Path:
    """Where the best checkpoint of a run lies, or for any other the newest epoch's."""
    from trainers.checkpoint import best_folder, epoch_folder, kept_epochs

    return best_folder(run_dir) if checkpoint == "best" else epoch_folder(run_dir, max(kept_epochs(run_dir), default=0))
