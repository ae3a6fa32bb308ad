"""On a GPU that is made up everything ends as on the CPU: no step, measurement, attack or chain mixes devices."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.recorded import timeless
from tests.trainers.stand_in_gpu import OnGpu, stand_in_gpu
from trainers import catalog, checkpoint, randomness
from trainers.data.images import training_indices
from trainers.evaluation.ranges import evaluate_range, fixed_subset
from trainers.evaluation.result import Protocol
from trainers.generation.sampler import Goal, class_energies, generate
from trainers.generation.settings import Dynamics
from trainers.lens.measure import measure_range
from trainers.loop import fit
from trainers.ranks import Ranks
from trainers.records import read_records

CPU = torch.device("cpu")
PROTOCOL = Protocol("digits", "test", 6, "0.06", "pgd20", 0, shard=6, batch_size=4, checkpoint="best")
SMALL = {
    "epochs": 2, "data.train_samples": 64, "data.holdout": 50, "optimizer.batch_size": 32,
    "evaluation.probe_samples": 20, "evaluation.batch_size": 30,
}  # fmt: skip
# What else a run may have, spread over the methods.
BESIDES = {
    "fgsm_rs_der": {"evaluation.check_every": 1},
    "weat_adv_der": {"data.augment": True, "data.flip": True, "optimizer.ema_decay": 0.9},
    "mail_trades": {"data.augment": True, "data.padding_mode": "reflect"},
    "mart": {"attack.warmup_epochs": 1},
    "sat": {"method.inner": "pgd_targeted", "optimizer.momentum_at_peak": 0.8},
    "trades": {"method.inner": "pgd_margin"},
}


@pytest.fixture
def gpu(monkeypatch):
    """`with gpu() as device:`."""
    return lambda: stand_in_gpu(monkeypatch)


@pytest.fixture(scope="module")
def net(experiment, splits, tmp_path_factory):
    """The checkpoint of a run on the CPU."""
    run_dir = tmp_path_factory.mktemp("run")
    settings = experiment({"method.name": "sat", "model.width": 8, "attack.steps": 2})
    list(fit(settings, run_dir, ranks=Ranks(0, 1, CPU), splits=splits))
    return checkpoint.load(checkpoint.best_folder(run_dir))


def test_the_gpu_that_is_made_up_refuses_what_a_gpu_refuses(gpu):
    with gpu() as device:
        there, here = torch.arange(3.0, device=device), torch.arange(3.0)
        assert (there.device, (there + 1).cpu().tolist()) == (device, [1, 2, 3])
        for mixed in (there.add, lambda host: there.where(host > 0, there), lambda host: torch.stack([host, there])):
            with pytest.raises(RuntimeError, match="on cuda:0 and on the CPU"):
                mixed(here)
        assert isinstance(there[here.long()], OnGpu)
        with pytest.raises(RuntimeError, match="on cuda:0 and on the CPU"):
            here[there.long()]
        with pytest.raises(RuntimeError):
            there.numpy()
        for place, of in ((device, "cpu"), ("cpu", device)):
            with pytest.raises(RuntimeError, match="generator of another device"):
                torch.rand(3, device=place, generator=randomness.generator(of, 0, "noise"))


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_run_is_the_same_on_a_gpu(name, experiment, gpu, tmp_path):
    settings = experiment(SMALL | {"method.name": name} | BESIDES.get(name, {}))
    here = list(fit(settings, tmp_path / "here", ranks=Ranks(0, 1, CPU)))
    with gpu() as device:
        running = fit(settings, tmp_path / "there", ranks=Ranks(0, 1, device))
        next(running)
        running.close()
        there = list(fit(settings, tmp_path / "there", ranks=Ranks(0, 1, device)))  # goes on from its checkpoint
    assert len(there) == 1
    assert timeless(read_records(tmp_path / "there")) == timeless(here)
    ours, theirs = (checkpoint.latest(tmp_path / place).weights() for place in ("here", "there"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_generated_images_and_ones_that_are_not_attacked_go_to_the_gpu(experiment, gpu, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "made.npz", image=rng.integers(256, size=(30, 8, 8, 1), dtype=np.uint8), label=np.arange(30) % 10
    )
    indices = training_indices(experiment(SMALL).data)[:20].tolist()
    (tmp_path / "subsets.json").write_text(json.dumps({"subsets": {"some": indices}}))
    subset = {"file": str(tmp_path / "subsets.json"), "name": "some", "treatment": "no_perturb"}
    extra = {"data.extra": str(tmp_path / "made.npz"), "data.extra_fraction": 0.25, "data.subset": subset, "epochs": 1}
    settings = experiment(SMALL | extra)
    here = list(fit(settings, tmp_path / "here", ranks=Ranks(0, 1, CPU)))
    with gpu() as device:
        there = list(fit(settings, tmp_path / "there", ranks=Ranks(0, 1, device)))
    assert timeless(there) == timeless(here)


@pytest.mark.parametrize("attack", ["pgd20,pgd20-t,kl20,margin-t,cw", "apgd-ce"])
def test_an_evaluation_is_the_same_on_a_gpu(attack, net, splits, gpu):
    protocol = replace(PROTOCOL, attack=attack)
    images = fixed_subset(splits.test, 6)
    here = evaluate_range(net.load_model(), images, protocol, 0, 6)
    with gpu() as device:
        assert evaluate_range(net.load_model(device), images.to(device), protocol, 0, 6) == here


def test_the_lens_and_chains_see_the_same_on_a_gpu(net, splits, gpu):
    images, labels = fixed_subset(splits.test, 6), torch.arange(6)
    starts = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def seen(device):
        points = measure_range(net.load_model(device), images.to(device), PROTOCOL, 0, 6)
        model = net.load_model(device).requires_grad_(False)
        goal = Goal(*class_energies(model, splits.train, 50, device))
        noise = randomness.generator(device, 0, "chains")
        made = generate(model, starts.to(device), labels.to(device), Dynamics(steps=45), noise, goal)
        return [np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value) for value in itertools.chain(
            vars(points).values(), vars(made).values()
        )]  # fmt: skip

    here = seen(CPU)
    with gpu() as device:
        there = seen(device)
    assert all(np.array_equal(ours, theirs, equal_nan=True) for ours, theirs in zip(here, there, strict=True))
