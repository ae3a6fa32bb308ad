"""The loops that benchmarks compare with train what ours trains, so that only their speed differs."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks import training_step
from benchmarks.published import STEP_OF, Log
from benchmarks.training_step import images_of, optimizer_of, settings_of
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
        Noise(generator("cpu", 0, "attack")), progress=0.0,
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


def test_both_sides_are_timed_with_their_own_loaders(monkeypatch):
    monkeypatch.setattr(training_step, "MODEL", NET)
    monkeypatch.setattr(training_step, "STEP_OF", {name: STEP_OF[name] for name in ("fgsm_rs", "trades")})
    table = training_step.measure(rounds=2)
    assert [row[0] for row in table.rows] == ["fgsm_rs", "trades"]
    for _, rate, passes, *ratios in table.rows:
        assert float(rate) > 0
        assert int(passes) in (5, 27)
        assert all(float(ratio.split()[0]) > 0 for ratio in ratios)
    assert table.markdown().count("|\n") == 3
