"""Two ranks over gloo against one: the same run, one gradient exchange a step, rows in order."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from trainers import checkpoint
from trainers.config import apply_values, parse
from trainers.data.batches import TrainingBatches
from trainers.data.images import load_splits
from trainers.loop import fit
from trainers.models.build import build_model
from trainers.problems import InvalidInput
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks, local_device
from trainers.records import RECORDS_FILE, read_records
from trainers.step import StepResult, build_method, train_step
from trainers.totals import EpochTotals
from trainers.whole_files import write_whole

WORLD = 2
ROWS = 32
BASE = {
    "data": {"size": 8, "train_samples": 130, "holdout": 75},
    "model": {"name": "small", "width": 4},
    "optimizer": {"batch_size": ROWS, "learning_rate": 0.05},
    "epochs": 2,
    "evaluation": {"probe_samples": 33, "batch_size": 40},
}
RUNS = {
    "sat": {"method.name": "sat", "attack.steps": 2, "model.norm": "group", "data.augment": True}
    | {"evaluation.check_every": 2},
    "fgsm_rs_der": {"method.name": "fgsm_rs_der", "model.norm": "group"},
    "weat_adv": {"method.name": "weat_adv", "attack.steps": 2, "model.norm": "batch"},
    "synchronized": {
        "method.name": "mail_at",
        "attack.steps": 2,
        "synchronize_batch_norm": True,
        "epochs": 1,
        "optimizer.ema_decay": 0.5,
    },
    "one_batch": {"method.name": "weat_adv", "attack.steps": 2, "optimizer.batch_size": 128, "epochs": 1},
}


def settings(name, **values):
    return parse(apply_values(BASE, RUNS[name] | values))


def one_step(experiment, splits, rank=0, world=1, wrap=lambda model: model):
    """Gradients and buffers after this rank's first step of a run."""
    batches = TrainingBatches(splits.train, experiment, Ranks(rank, world, torch.device("cpu")))
    model = build_model(experiment).train()
    train_step(
        wrap(model),
        build_method(experiment),
        torch.optim.SGD(model.parameters(), lr=0.1),
        *next(batches.epoch(0))[:2],
        Noise(generator("cpu", experiment.seed, "attack", 0), *batches.rows),
        epoch_fraction=1.0,
    )
    return [parameter.grad for parameter in model.parameters()], dict(model.named_buffers())


class Local(Exception):
    """An error that is made of something else than its text, so that it can't be sent."""

    def __init__(self, *, code):
        super().__init__(f"code {code}")


FAILURES = (ZeroDivisionError("by zero"), Local(code=7))


def fail(error):
    raise error


def raised_by(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def work(rank, folder):
    """What each of the two processes does; the tests look at what it leaves in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    ranks = Ranks.current("cpu")
    splits = torch.load(folder / "splits.pt", weights_only=False)
    found = {"records": {n: list(fit(settings(n), folder / n, ranks=ranks, splits=splits)) for n in RUNS}}

    exchanged, forwards = [], []

    def count_buckets(state, bucket):
        exchanged.append(bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    def wrap(model):
        wrapped = ranks.data_parallel(model)
        wrapped.register_comm_hook(None, count_buckets)
        wrapped.register_forward_hook(lambda *_: forwards.append(1))
        return wrapped

    for steps in (1, 5):
        exchanged.clear()
        forwards.clear()
        gradients, buffers = one_step(settings("weat_adv", **{"attack.steps": steps}), splits, rank, WORLD, wrap)
        found[f"exchanged {steps}"], found[f"forwards {steps}"] = list(exchanged), len(forwards)
    found["gradients"], found["buffers"] = gradients, buffers
    model = build_model(settings("weat_adv"))
    for buffer in model.buffers():
        buffer.copy_(torch.full_like(buffer, 3 * rank))
    ranks.average_buffers(model)
    found["averaged"] = dict(model.named_buffers())
    uneven = torch.arange(10.0).view(5, 2)[rank * 3 : rank * 3 + 3]
    found["concatenated"] = ranks.concatenate(uneven)
    found["with an empty rank"] = ranks.concatenate(uneven[:0] if rank == 0 else uneven)
    found["sum"] = ranks.sum(torch.tensor([1.0, rank]))
    found["broadcast"] = ranks.broadcast({"from": rank})
    ranks.on_first((folder / f"written by {rank}").touch)
    try:
        ranks.on_first((folder / "missing" / "file").touch)
    except FileNotFoundError as error:
        found["refused"] = error.filename
    found["errors"] = [raised_by(partial(ranks.on_first, partial(fail, error))) for error in FAILURES]
    totals = EpochTotals(ranks, ROWS, comparable=False)
    for step in range(4):  # the second rank's third step is bad, and through the gradients all that follow it
        loss = torch.nan if step >= 3 - rank else 1.0
        totals.add(StepResult(torch.tensor(loss), *[torch.zeros(())] * 5))
    found["diverged"] = raised_by(lambda: totals.metrics(0, None))
    found["on the first"] = ranks.on_first(lambda: rank)
    ranks.on_first(lambda: write_whole(folder / "broken" / RECORDS_FILE, "no record\n"))
    try:
        next(fit(settings("weat_adv"), folder / "broken", ranks=ranks, splits=splits))
    except InvalidInput as error:
        found["no record"] = str(error)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pictures():
    return load_splits(settings("sat").data)


@pytest.fixture(scope="module")
def together(pictures, tmp_path_factory):
    """(run folder, what each rank found): two processes, started once for all tests of this file."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.save(pictures, folder / "splits.pt")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, (folder,), nprocs=WORLD)
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("name", RUNS)
def test_both_ranks_yield_the_same_records_and_they_are_written_once(name, together):
    folder, (first, second) = together
    assert first["records"][name] == second["records"][name] == read_records(folder / name)
    assert [record.epoch for record in first["records"][name]] == list(range(settings(name).epochs))


@pytest.mark.parametrize("name", ["sat", "fgsm_rs_der", "synchronized"])
def test_two_ranks_train_the_net_that_one_rank_trains(name, together, pictures, alone, tmp_path):
    folder, (found, _) = together
    records = list(fit(settings(name), tmp_path, ranks=alone, splits=pictures))
    weights = checkpoint.latest(tmp_path).weights()
    for key, value in checkpoint.latest(folder / name).weights().items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-5)
    for ours, theirs in zip(found["records"][name], records, strict=True):
        timeless = {key: value for key, value in theirs.metrics.items() if "second" not in key}
        assert {key: ours.metrics[key] for key in timeless} == pytest.approx(timeless, rel=1e-4, abs=1e-4)


def test_gradients_under_batch_norm_are_the_mean_of_those_of_the_two_halves(together, pictures):
    experiment = settings("weat_adv", **{"attack.steps": 5})
    halves = [one_step(experiment, pictures, rank, WORLD)[0] for rank in range(WORLD)]
    for rank in range(WORLD):
        for gradient, left, right in zip(together[1][rank]["gradients"], *halves, strict=True):
            torch.testing.assert_close(gradient, (left + right) / 2, rtol=1e-4, atol=1e-6)


def test_batch_norm_statistics_are_each_ranks_own_until_they_are_averaged(together, pictures):
    experiment = settings("weat_adv", **{"attack.steps": 5})
    for rank in range(WORLD):
        _, buffers = one_step(experiment, pictures, rank, WORLD)
        for name, value in together[1][rank]["buffers"].items():
            torch.testing.assert_close(value, buffers[name], rtol=1e-4, atol=1e-6)
        for name, value in together[1][rank]["averaged"].items():
            # The input statistics are in no checkpoint: the net that is measured has to have those that will be built.
            is_averaged = value.is_floating_point() and name not in ("mean", "std")
            assert (value == (1.5 if is_averaged else 3 * rank)).all(), name


def test_a_checkpoint_holds_the_mean_of_the_ranks_batch_norm_statistics(together, pictures):
    experiment = settings("one_batch")
    left, right = (one_step(experiment, pictures, rank, WORLD)[1] for rank in range(WORLD))
    saved = checkpoint.latest(together[0] / "one_batch").weights()
    means = [name for name in left if name.endswith("running_mean")]
    for name in means:
        torch.testing.assert_close(saved[name], (left[name] + right[name]) / 2, rtol=0, atol=2e-5)
        assert (left[name] - right[name]).abs().max() > 2e-4
    assert len(means) == 3


def test_gradients_are_exchanged_once_a_step_whatever_the_steps_of_the_attack(together, pictures):
    parameters = sum(p.numel() for p in build_model(settings("weat_adv")).parameters())
    for found in together[1]:
        assert sum(found["exchanged 1"]) == parameters
        assert found["exchanged 1"] == found["exchanged 5"]
        assert found["forwards 1"] == found["forwards 5"] == 2  # the attack itself goes around DDP


def test_rows_of_all_ranks_come_together_in_order_even_if_uneven(together):
    rows = torch.arange(10.0).view(5, 2)
    for found in together[1]:
        assert torch.equal(found["concatenated"], rows)
        assert torch.equal(found["with an empty rank"], rows[3:])
        assert found["sum"].tolist() == [2, 1]
        assert found["broadcast"] == {"from": 0}


def test_the_first_rank_writes_and_what_it_is_refused_every_rank_is_told(together):
    folder, found = together
    assert [file.name for file in folder.glob("written by *")] == ["written by 0"]
    assert [each["refused"] for each in found] == [str(folder / "missing" / "file")] * WORLD
    assert [each["on the first"] for each in found] == [0] * WORLD
    assert [each["errors"] for each in found] == [["ZeroDivisionError: by zero", "RuntimeError: Local: code 7"]] * WORLD
    for each in found:  # and none waits for a first one that is gone
        assert each["no record"].startswith(f"{folder}/broken/records.jsonl: has a line that is no record")


def test_every_rank_says_in_which_step_the_first_of_them_diverged(together):
    for found in together[1]:
        assert "not finite at epoch 1, step 3;" in found["diverged"]


def test_the_threads_of_a_process_group_end_with_it(tmp_path):
    script = f"""
import torch, torch.distributed as dist
from pathlib import Path
from trainers.ranks import Ranks, local_device

dist.init_process_group("gloo", init_method="file://{tmp_path}/rendezvous", rank=0, world_size=1)
model = Ranks(0, 2, torch.device("cpu")).data_parallel(torch.nn.Linear(2, 2))
names = lambda: {{thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")}}
assert any("gloo" in name for name in names()), names()
del model
dist.destroy_process_group()
assert not any("gloo" in name for name in names()), names()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_alone_every_collective_does_nothing(alone):
    values = torch.arange(3.0)
    assert alone.sum(values) is alone.concatenate(values) is alone.broadcast(values) is values
    assert alone.share(3) == slice(0, 3)
    assert Ranks.current("cpu") == alone


@pytest.mark.parametrize(
    ("gpus", "local_rank", "device"), [(0, "1", "cpu"), (4, "3", "cuda:3"), (1, "3", "cuda:0"), (2, None, "cuda:0")]
)
def test_a_process_computes_on_the_gpu_of_its_place_or_on_the_one_that_it_sees(gpus, local_rank, device, monkeypatch):
    """A launcher may show each process a GPU of its own alone, whatever its place is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert local_device() == Ranks.current().device == torch.device(device)
