"""A compiled training step against the public loop and against the same step as it is."""

from __future__ import annotations

import time

import torch

from benchmarks.results import Table
from benchmarks.subjects import BATCH, ON_WHAT, OurStep, PublishedStep, always, images_of, settings_of, the_net
from benchmarks.timing import in_turns
from trainers.precision import tf32

METHODS = ("fgsm_rs", "sat", "trades", "weat_adv")
FORMS = ("float32, compiled", "bfloat16, compiled")


def measure(rounds: int) -> Table:
    """One row a method and precision."""
    data = always(images_of(BATCH))
    rows = []
    for name in METHODS:
        torch._dynamo.reset()
        experiment = settings_of(name)
        for form in FORMS:
            compiled, plain = OurStep(experiment, data, form), OurStep(experiment, data)
            with tf32(allowed=False):
                began = time.perf_counter()
                compiled()
                seconds = time.perf_counter() - began
                others = {"public": PublishedStep(name, experiment, data), "plain": plain, "noise": compiled}
                timed = in_turns(compiled, others, rounds)
            if not compiled.is_compiled:
                raise RuntimeError("torch.compile does not work here: nothing to measure")
            ratios = (str(timed.ratios[which]) for which in ("public", "plain", "noise"))
            rows.append((name, form, f"{BATCH / timed.seconds:.0f}", *ratios, f"{seconds:.0f}"))
    return Table(
        "A training step, compiled",
        f"{the_net()}, {ON_WHAT}, {rounds} rounds in turns; median and middle half. `compile: true` against the public "
        "loop and against our own step as it is, both in float32. The first step compiles; its seconds depend on what "
        "the compiler's cache holds already.",
        ("method", "precision", "images/s", "public / ours", "not compiled / ours", "ours / ours", "first step, s"),
        tuple(rows),
    )
