"""Architectures have the size the catalog says, take images of any size and are the same for the same seed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainers import catalog
from trainers.config import parse
from trainers.models.build import build_model
from trainers.models.projection import Projection


def network(name, num_classes=10, channels=3, **fields):
    row = catalog.MODELS[name]
    return row.load()(
        num_classes, channels, **{key: parameter.default for key, parameter in row.parameters.items()} | fields
    )


def build(name, **fields):
    return build_model(parse({"data": {"name": "cifar10"}, "model": {"name": name}} | fields))


@pytest.mark.parametrize("name", catalog.MODELS)
def test_size_and_cost_are_those_of_the_catalog(name):
    row = catalog.MODELS[name]
    with torch.device("meta"):
        model = network(name)
        with FlopCounterMode(display=False) as counted:
            logits = model(torch.empty(1, 3, 32, 32))
    assert logits.shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(row.millions, rel=0.02)
    assert counted.get_total_flops() / 1e9 == pytest.approx(row.gigaflop, rel=0.05)


@pytest.mark.parametrize(("name", "published"), [("wide_resnet28_10", 36.5), ("wide_resnet34_10", 46.2)])
def test_wide_networks_have_the_published_number_of_parameters(name, published):
    with torch.device("meta"):
        assert round(sum(p.numel() for p in network(name).parameters()) / 1e6, 1) == published


@pytest.mark.parametrize("name", catalog.MODELS)
@pytest.mark.parametrize(("size", "num_classes"), [(8, 100), (64, 200)])
def test_images_of_other_sizes_and_any_number_of_classes_work_too(name, size, num_classes):
    with torch.device("meta"):
        assert network(name, num_classes, 1)(torch.empty(2, 1, size, size)).shape == (2, num_classes)


@pytest.mark.parametrize("depth", [5, 4, 27, 0])
def test_a_wide_network_of_no_whole_number_of_blocks_is_refused(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 4, not {depth}"):
        network("wide_resnet28_10", depth=depth)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [(name, field, value) for name, row in catalog.MODELS.items() for field, p in row.parameters.items()
     for value in p.choices or ((not p.default,) if isinstance(p.default, bool) else (p.default + 1,))],
)  # fmt: skip
def test_every_parameter_builds_a_net_that_answers(name, field, value):
    with torch.device("meta"):
        model = network(name, **{field: value})
        assert model(torch.empty(2, 3, 16, 16)).shape == (2, 10)


def test_the_seed_decides_the_weights_and_the_global_random_state_does_not():
    first = build("small").state_dict()
    torch.rand(3)
    again, other = build("small").state_dict(), build("small", seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


@pytest.mark.parametrize("normalization", ["standard", "half", "none"])
def test_images_are_normalized_inside_the_model(normalization):
    dataset = catalog.DATASETS["cifar10"]
    mean, std = {"standard": (dataset.mean, dataset.std), "half": ([0.5] * 3,) * 2, "none": ([0.0] * 3, [1.0] * 3)}[
        normalization
    ]
    model = build("small", data={"name": "cifar10", "normalization": normalization})
    model.network = nn.Identity()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).expand(2, 3, 4, 4) for values in (mean, std))
    torch.testing.assert_close(model(mean), torch.zeros(2, 3, 4, 4))
    torch.testing.assert_close(model(mean + std), torch.ones(2, 3, 4, 4))


def test_without_normalization_the_network_sees_the_very_pixels():
    images = torch.rand(2, 3, 4, 4)
    model = build("small", data={"name": "cifar10", "normalization": "none"})
    assert torch.equal(model(images), model.network(images))


def test_a_convolutional_shortcut_reads_the_activated_or_the_raw_input():
    """Blocks of the two kinds with the same weights differ by the projection of what BN-ReLU took away."""
    activated, raw = (network("preact_resnet18", width=4, blocks_per_stage=1, shortcut=s) for s in ("activated", "raw"))
    raw.load_state_dict(activated.state_dict())
    features = torch.randn(2, 4, 8, 8)
    for stage, differs in ((1, False), (2, True)):  # the first stage keeps its shape: nothing to project
        blocks = activated[stage].eval(), raw[stage].eval()
        outputs = [block(features) for block in blocks]
        if differs:
            projection = blocks[0].projection
            removed = features - torch.relu(blocks[0].norm1(features))
            torch.testing.assert_close(outputs[1] - outputs[0], projection(removed))
            assert (outputs[1] - outputs[0]).abs().max() > 0.01
        else:
            assert torch.equal(*outputs)


def test_the_final_norm_keeps_pooled_features_from_being_negative():
    pooled = {}
    for final_norm in (True, False):
        model = network("preact_resnet18", width=4, final_norm=final_norm).eval()
        pooled[final_norm] = model[:-1](torch.randn(8, 3, 16, 16))
        assert pooled[final_norm].shape == (8, 32)
    assert pooled[True].min() >= 0 > pooled[False].min()


def test_the_projection_of_a_wide_block_reads_the_activated_input():
    block = network("wide_resnet28_10", depth=10, widen_factor=2)[1].eval()
    features = torch.randn(2, 16, 8, 8)
    activated = torch.relu(block.norm1(features))
    residual = block.conv2(torch.relu(block.norm2(block.conv1(activated))))
    torch.testing.assert_close(block(features), residual + block.projection(activated))


def test_wide_convolutions_start_with_the_variance_of_their_fan_out():
    model = build("small", model={"name": "wide_resnet28_10", "depth": 10, "widen_factor": 4})
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 10
    for convolution in convolutions:
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert float(convolution.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("inputs", [4, 15, 16])
def test_a_projection_is_a_strided_convolution(inputs):
    projection = Projection(inputs, 6, 2).double()
    plain = nn.Conv2d(inputs, 6, 1, 2, bias=False).double()
    plain.load_state_dict(projection.state_dict())
    features = torch.randn(3, inputs, 7, 10, dtype=torch.double)
    gradients = []
    for convolution in (projection, plain):
        given = features.clone().requires_grad_()
        found = torch.autograd.grad(convolution(given).square().sum(), (given, convolution.weight))
        gradients.append((convolution(features), *found))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["preact_resnet18", "resnet18"])
def test_narrow_networks_train_on_large_images(name, tmp_path):
    """In a process of its own: oneDNN used to write beyond its memory and to end it."""
    command = [
        sys.executable, "-m", "trainers", "data.size=64", "data.train_samples=64", "data.holdout=20", f"model={name}",
        "model.width=8", "model.blocks_per_stage=1", "method=fgsm", "epochs=1", "evaluation.probe_samples=16",
        "optimizer.batch_size=16", "--run-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
