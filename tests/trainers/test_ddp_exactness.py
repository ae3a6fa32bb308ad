"""One update on 2 and on 4 ranks against one process, in float64: every preset, with and without batch norm.

Without batch norm, and with it synchronized, the number of workers must not show. With each rank's own batch norm it
does: other batches, other statistics.
"""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainers import catalog
from trainers.config import apply_values, parse
from trainers.models.batch_norm import BatchNorm2d
from trainers.models.build import build_model
from trainers.models.synchronized import synchronize_batch_norm
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks
from trainers.step import build_method, train_step

ROWS = 32
WORLDS = (2, 4)
BASE = {
    "data": {"size": 8},
    "model": {"name": "small", "width": 4},
    "attack": {"epsilon": 0.8},  # large enough for abnormal examples, unevenly over the ranks
    "seed": 1,
}
VARIANTS = {
    **{name: {"method.name": name} for name in catalog.PRESETS},
    "der divided by its samples": {"method.name": "fgsm_rs_der", "method.regularizer.divide_by": "samples"},
    "der against the image": {"method.name": "sat_der", "method.regularizer.samples": "abnormal"},
    "aaer with gradient": {"method.name": "aaer", "method.regularizer.loss_gradient": True},
    "mail of mean one": {"method.name": "mail_at", "method.weighting.normalize": "mean1"},
    "grad_align from noise": {"method.name": "fgsm_rs", "method.regularizer": "grad_align"},
}
NORMS = ("group", "batch")


def settings(name, norm):
    values = VARIANTS[name] | {"model.norm": norm}
    single = catalog.INNER[catalog.PRESETS[values["method.name"]].slot("inner")["name"]].single_step
    return parse(apply_values(BASE, values if single else values | {"attack.steps": 2}))


def update(experiment, images, labels, ranks, *, synchronized=True):
    """(weights after one step on this rank's rows, its StepResult)."""
    model = build_model(experiment).double().train()
    if ranks.world_size > 1 and synchronized:
        synchronize_batch_norm(model)
    own = ranks.share(ROWS)
    noise = Noise(generator("cpu", 0, "attack"), ROWS, own.start)
    parallel, method = ranks.data_parallel(model), build_method(experiment)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = train_step(
        parallel, method, optimizer, images[own], labels[own], noise, epoch_fraction=1.0, mean_over_ranks=ranks.mean
    )
    return {name: value.clone() for name, value in model.state_dict().items()}, result


def rounded_statistics(ranks):
    """Batch-norm buffers and the type of the output after a bfloat16 batch with a large mean, a part on each rank."""
    values = (100 + torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))).bfloat16()
    layer = synchronize_batch_norm(torch.nn.Sequential(BatchNorm2d(3)).train())
    output = layer(values[ranks.share(len(values))])
    return {name: value for name, value in layer.state_dict().items() if "running" in name} | {
        "output": output.detach()
    }


def work(rank, folder):
    torch.set_num_threads(1)
    images, labels = torch.load(folder / "batch.pt")
    for world in reversed(WORLDS):
        if rank >= world:
            return
        rendezvous = f"file://{folder}/rendezvous{world}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
        ranks = Ranks.current("cpu")
        found = {
            (name, norm): update(settings(name, norm), images, labels, ranks) for name in VARIANTS for norm in NORMS
        }
        found["statistics"] = rounded_statistics(ranks), None
        found["own"] = update(settings("sat", "batch"), images, labels, ranks, synchronized=False)
        plain = {key: (weights, result and vars(result)) for key, (weights, result) in found.items()}
        torch.save(plain, folder / f"world{world}rank{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def batch(digits):
    return digits[0][:ROWS].double(), digits[1][:ROWS]


@pytest.fixture(scope="module")
def together(batch, tmp_path_factory):
    """`together[world][rank]`: what each rank of 2 and of 4 found; all started once."""
    folder = tmp_path_factory.mktemp("exactness")
    torch.save(batch, folder / "batch.pt")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, (folder,), nprocs=max(WORLDS))
    return {world: [torch.load(folder / f"world{world}rank{rank}.pt") for rank in range(world)] for world in WORLDS}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_number_of_ranks_does_not_show(name, norm, together, batch, alone):
    weights, result = update(settings(name, norm), *batch, alone)
    for world in WORLDS:
        found = [rank[name, norm] for rank in together[world]]
        for theirs, _ in found:
            for key, value in weights.items():
                torch.testing.assert_close(
                    theirs[key], value, rtol=0, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
                )
        for part in fields(result):
            parts = torch.stack([theirs[part.name].double() for _, theirs in found])
            whole = parts.mean() if part.name in ("loss", "regularizer") else parts.sum()
            torch.testing.assert_close(whole, getattr(result, part.name).double(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("world", WORLDS)
def test_the_ranks_hold_different_numbers_of_abnormal_examples(world, together):
    for name in ("fgsm_rs_der", "der divided by its samples", "aaer", "aaer with gradient"):
        counts = [int(rank[name, "batch"][1]["abnormal"]) for rank in together[world]]
        assert len(set(counts)) > 1
        assert sum(counts) > 0


@pytest.mark.parametrize("world", WORLDS)
def test_with_each_ranks_own_batch_norm_the_number_of_ranks_shows(world, together, batch, alone):
    weights, _ = update(settings("sat", "batch"), *batch, alone)
    own = together[world][0]["own"][0]
    weight = next(name for name in weights if name.endswith("weight"))
    assert (own[weight] - weights[weight]).abs().max() > 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_synchronized_statistics_of_bfloat16_activations_are_those_of_float32(world, together):
    values = (100 + torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))).bfloat16()
    exact = torch.nn.BatchNorm2d(3).train()
    exact(values.float())
    found, _ = together[world][0]["statistics"]
    torch.testing.assert_close(found["0.running_mean"], exact.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found["0.running_var"], exact.running_var, rtol=1e-5, atol=0)
    assert found["output"].dtype == torch.bfloat16
