"""A training step does what the catalog says: its cost, no wait for the device, what it moves and what it leaves."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainers import catalog
from trainers.models.build import build_model
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step

aten = torch.ops.aten


def step_of(settings, splits, device="cpu"):
    """A function that takes one training step of the settings, with every slot acting."""
    model = build_model(settings).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = build_method(settings)
    images, labels = splits.train.floats(0, 8).to(device), splits.train.labels[:8].to(device)
    noise = Noise(generator(device, 0, "attack"))
    return model, lambda: train_step(model, method, optimizer, images, labels, noise, progress=1.0)


def preset(name, experiment):
    single = catalog.INNER[catalog.PRESETS[name].slot("inner")["name"]].single_step
    return experiment({"method.name": name} | ({} if single else {"attack.steps": 3}))


class Passes(TorchDispatchMode):
    """Counts passes through the second convolution: forward 1, backward to its input 1, to its weight 1."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.passes = shape, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is aten.convolution.default and args[1].shape == self.shape:
            self.passes += 1
        if operation is aten.convolution_backward.default and args[2].shape == self.shape:
            self.passes += sum(args[-1][:2])
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_costs_the_passes_of_the_catalog(name, experiment, splits):
    settings = preset(name, experiment)
    _, step = step_of(settings, splits)
    with Passes((8, 4, 3, 3)) as counted:
        step()
    assert counted.passes == settings.training_passes


class HostSyncs(TorchDispatchMode):
    """Collects operations that make the host wait for the device: scalars, shapes and masks read back, host tensors."""

    waiting = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.lift_fresh)

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        by_mask = operation.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if operation.overloadpacket in self.waiting or by_mask:
            self.seen.append(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_never_waits_for_the_device(name, experiment, splits):
    _, step = step_of(preset(name, experiment), splits)
    with HostSyncs() as syncs:
        step()
    assert syncs.seen == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_never_waits_for_a_real_device(name, experiment, splits):
    _, step = step_of(preset(name, experiment), splits, "cuda")
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_detector_of_host_syncs_detects(value):
    with HostSyncs() as syncs:
        logits = torch.tensor([value])
        logits.item()
        logits[logits > 0.5]
        logits.nonzero()
    assert {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.index.Tensor"} <= set(syncs.seen)


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_step_moves_the_weights_and_sums_over_its_rows(name, experiment, splits):
    model, step = step_of(preset(name, experiment), splits)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result = step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert result.loss.isfinite()
    assert 0 <= result.adversarial_correct <= 8
    assert (result.weight_sum == 8) == (catalog.PRESETS[name].weighting is None)
    assert result.regularizer == 0 or catalog.PRESETS[name].regularizer
    assert result.perturbation_norm > 0
