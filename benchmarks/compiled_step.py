"""A training step compiled by torch.compile against the same step as it is."""

from __future__ import annotations

import copy
import time

import torch

from benchmarks.results import Table
from benchmarks.timing import in_turns
from benchmarks.training_step import BATCH, DEVICE, MODEL, ON_GPU, images_of, optimizer_of, settings_of
from trainers.models.build import build_model
from trainers.models.compiled import Compiled
from trainers.precision import tf32
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step

METHODS = ("fgsm_rs", "sat", "trades", "weat_adv")


def measure(rounds: int) -> Table:
    """One row a method."""
    data = images_of(BATCH).to(DEVICE)
    images = data.floats().contiguous(memory_format=torch.channels_last)
    rows = []
    for name in METHODS:
        torch._dynamo.reset()
        experiment = settings_of(name)
        method, noise = build_method(experiment), Noise(generator(DEVICE, 0, "attack"))
        plain = build_model(experiment).to(DEVICE).to(memory_format=torch.channels_last).train()
        compiled = Compiled(copy.deepcopy(plain)).train()

        def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
            train_step(model, method, optimizer, images, data.labels, noise, progress=0.0)  # noqa: B023

        optimizers = {model: optimizer_of(model, fused=True) for model in (plain, compiled)}
        with tf32(allowed=False):
            began = time.perf_counter()
            step(compiled, optimizers[compiled])
            seconds = time.perf_counter() - began
            timed = in_turns(
                lambda: step(compiled, optimizers[compiled]),  # noqa: B023
                {
                    "as it is": lambda: step(plain, optimizers[plain]),  # noqa: B023
                    "noise": lambda: step(compiled, optimizers[compiled]),  # noqa: B023
                },
                rounds,
            )
        if not compiled.is_compiled:
            raise RuntimeError("torch.compile does not work here: nothing to measure")
        rows.append(
            (name, f"{BATCH / timed.seconds:.0f}", *(str(timed.ratios[which]) for which in ("as it is", "noise")),
             f"{seconds:.0f}")
        )  # fmt: skip
    net = ", ".join(f"{key} {value}" for key, value in MODEL.items())
    return Table(
        "A training step, compiled",
        f"{net}; batch {BATCH}, float32, {'GPU' if ON_GPU else 'one CPU thread, time of the process'}, {rounds} rounds "
        "in turns; median and middle half. `compile: true` against the same step without. The first step compiles; its "
        "seconds depend on what the compiler's cache holds already.",
        ("method", "compiled, images/s", "as it is / compiled", "compiled / compiled", "first step, s"),
        tuple(rows),
    )
