"""Peak memory of a process that trains a few steps, ours against the public loop."""

from __future__ import annotations

import multiprocessing
import resource
from multiprocessing.connection import Connection

import torch

from benchmarks.results import Table

METHODS = ("fgsm_rs", "sat", "trades")
STEPS = 3


def measure(rounds: int) -> Table:
    """One row a method. Once is enough: memory does not depend on what else the machine does."""
    rows = []
    for method in METHODS:
        ours, theirs = (_in_a_process(method, public) for public in (False, True))
        rows.append((method, f"{ours:.0f}", f"{theirs:.0f}", f"{theirs / ours:.2f}"))
    return Table(
        "Memory of a training step",
        "Peak of a fresh process in MiB above what it held before the first step (of the device, on a GPU): "
        f"{STEPS} steps of the net and batch of the first table.",
        ("method", "ours", "public loop", "public / ours"),
        tuple(rows),
    )


def _in_a_process(method: str, public: bool) -> float:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_steps, args=(method, public, sending))
    process.start()
    mebibytes: float = receiving.recv()
    process.join()
    return mebibytes


def _steps(method: str, public: bool, sending: Connection) -> None:
    from benchmarks.published import STEP_OF, Log
    from benchmarks.training_step import BATCH, DEVICE, images_of, optimizer_of, settings_of
    from trainers.models.build import build_model
    from trainers.randomness import Noise, generator
    from trainers.step import build_method, train_step

    torch.set_num_threads(1)
    experiment, data = settings_of(method), images_of(BATCH).to(DEVICE)
    model = build_model(experiment).to(DEVICE).train()
    if not public:
        model = model.to(memory_format=torch.channels_last)
    optimizer, noise = optimizer_of(model, fused=not public), Noise(generator(DEVICE, 0, "attack"))
    images, ours, log = data.floats(), build_method(experiment), Log()
    before = _peak()
    for _ in range(STEPS):
        if public:
            STEP_OF[method](model, optimizer, images.contiguous(), data.labels, noise, log)
        else:
            train_step(model, ours, optimizer, images, data.labels, noise, progress=0.0)
    sending.send(_peak() - before)


def _peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
