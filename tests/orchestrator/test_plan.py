"""What a plan says a run will cost, against the operations that its model does."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.plan import cost_of, model_size
from trainers.config import parse
from trainers.models.build import build_model


@pytest.mark.parametrize(
    "raw",
    [
        {"data": "tiny_imagenet"},
        {"data": "tiny_imagenet", "model": {"name": "wide_resnet28_10", "depth": 16, "widen_factor": 4}},
        {"data": "cifar100", "model": {"name": "wide_resnet34_10", "depth": 40, "widen_factor": 2}},
        {"data": "cifar10", "model": {"name": "resnet18", "width": 32, "blocks_per_stage": 4}},
        {"data": {"name": "digits", "size": 64}},
    ],
)
def test_the_cost_of_a_forward_follows_the_size_of_images_and_model(raw):
    experiment = parse(raw)
    with torch.device("meta"):
        model = build_model(experiment)
        channels = 1 if experiment.data.name == "digits" else 3
        with FlopCounterMode(display=False) as counted:
            model(torch.empty(1, channels, experiment.data.size, experiment.data.size))
    gigaflop, parameters = model_size(experiment)
    # Rough: the stem and the first projections do not scale as the rest.
    assert gigaflop == pytest.approx(counted.get_total_flops() / 1e9, rel=0.15)
    assert parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.15)


def test_four_times_the_pixels_are_four_times_the_work():
    small, large = (cost_of(parse({"data": {"name": "digits", "size": size}})) for size in (32, 64))
    assert large.tflop == pytest.approx(4 * small.tflop)
