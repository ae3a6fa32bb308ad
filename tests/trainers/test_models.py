"""Architectures have the size the catalog says, take images of any size and are the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainers import catalog
from trainers.config import parse
from trainers.models.build import build_model


def build(name, **fields):
    return build_model(parse({"data": {"name": "cifar10"}, "model": {"name": name}} | fields))


@pytest.mark.parametrize("name", catalog.MODELS)
def test_size_and_cost_are_those_of_the_catalog(name):
    row = catalog.MODELS[name]
    with torch.device("meta"):
        model = row.load()(10, 3)
        with FlopCounterMode(display=False) as counted:
            logits = model(torch.empty(1, 3, 32, 32))
    assert logits.shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(row.millions, rel=0.02)
    assert counted.get_total_flops() / 1e9 == pytest.approx(row.gigaflop, rel=0.05)


@pytest.mark.parametrize("name", catalog.MODELS)
@pytest.mark.parametrize("size", [8, 64])
def test_images_of_other_sizes_work_too(name, size):
    with torch.device("meta"):
        assert catalog.MODELS[name].load()(200, 1)(torch.empty(2, 1, size, size)).shape == (2, 200)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [(name, field, value) for name, row in catalog.MODELS.items() for field, p in row.parameters.items()
     for value in p.choices or ((not p.default,) if isinstance(p.default, bool) else (p.default + 1,))],
)  # fmt: skip
def test_every_parameter_builds_a_net_that_answers(name, field, value):
    with torch.device("meta"):
        model = catalog.MODELS[name].load()(10, 3, **{field: value})
        assert model(torch.empty(2, 3, 16, 16)).shape == (2, 10)


def test_the_seed_decides_the_weights_and_the_global_random_state_does_not():
    first = build("small").state_dict()
    torch.rand(3)
    again, other = build("small").state_dict(), build("small", seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


def test_images_are_normalized_inside_the_model():
    model = build("small")
    model.network = nn.Identity()
    dataset = catalog.DATASETS["cifar10"]
    mean = torch.tensor(dataset.mean).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(model(mean), torch.zeros(2, 3, 4, 4))
    one_deviation = mean + torch.tensor(dataset.std).view(1, 3, 1, 1)
    torch.testing.assert_close(model(one_deviation), torch.ones(2, 3, 4, 4))
