"""The loops that benchmarks compare with train what ours trains, so that only their speed differs."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.published import STEP_OF, Log
from benchmarks.subjects import images_of, optimizer_of, settings_of
from trainers.models.build import build_model
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step

NET = {"name": "preact_resnet18", "width": 4, "blocks_per_stage": 1}


@pytest.mark.parametrize("method", STEP_OF)
def test_one_step_moves_the_weights_alike(method):
    experiment, data = settings_of(method, NET), images_of(8)
    images = data.floats().double()
    model = build_model(experiment).double().train()
    before, plain = copy.deepcopy(model), copy.deepcopy(model)
    train_step(
        model, build_method(experiment), optimizer_of(model, fused=True), images, data.labels,
        Noise(generator("cpu", 0, "attack")), epoch_fraction=0.0,
    )  # fmt: skip
    log = Log()
    STEP_OF[method](
        plain, optimizer_of(plain, fused=False), images, data.labels, Noise(generator("cpu", 0, "attack")), log
    )
    assert log.count >= 8
    for (name, ours), theirs, old in zip(
        model.named_parameters(), plain.parameters(), before.parameters(), strict=True
    ):
        assert not torch.equal(ours, old), name
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
