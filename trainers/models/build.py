"""A model from its name in the catalog, with the input normalization inside."""

from __future__ import annotations

import torch
from torch import nn

from trainers import catalog
from trainers.config import Experiment
from trainers.models.normalize import Normalized, input_statistics
from trainers.randomness import derive_seed, kept_random_state


def build_model(experiment: Experiment) -> nn.Module:
    """A freshly initialized classifier on images in [0,1], the same for the same seed on every rank.

    The global random state is left as it was.
    """
    dataset = catalog.DATASETS[experiment.data.name]
    entry = catalog.MODELS[experiment.model.name]
    with kept_random_state():
        torch.manual_seed(derive_seed(experiment.seed, "weights"))
        network = entry.load()(dataset.num_classes, dataset.channels, **experiment.model.parameters)
    return Normalized(network, *input_statistics(dataset, experiment.data.normalization))
