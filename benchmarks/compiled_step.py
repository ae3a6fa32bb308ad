"""A training step compiled by torch.compile against the same step as it is."""

from __future__ import annotations

import time

import torch

from benchmarks.our_step import OurStep
from benchmarks.results import Table
from benchmarks.timing import in_turns
from benchmarks.training_step import BATCH, MODEL, ON_GPU, images_of, settings_of
from trainers.precision import tf32

METHODS = ("fgsm_rs", "sat", "trades", "weat_adv")


def measure(rounds: int) -> Table:
    """One row a method."""
    data = images_of(BATCH)
    rows = []
    for name in METHODS:
        torch._dynamo.reset()
        plain, compiled = (OurStep(settings_of(name), data, form) for form in ("float32", "float32, compiled"))
        with tf32(allowed=False):
            began = time.perf_counter()
            compiled()
            seconds = time.perf_counter() - began
            timed = in_turns(compiled, {"as it is": plain, "noise": compiled}, rounds)
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
