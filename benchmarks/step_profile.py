"""Where the time of a training step goes, and how much of what the device can do it uses."""

from __future__ import annotations

import statistics

import torch

from benchmarks.counting import Operations, kernels_and_syncs
from benchmarks.results import Table
from benchmarks.subjects import BATCH, DEVICE, ON_GPU, ON_WHAT, OurStep, always, images_of, settings_of, the_net
from benchmarks.timing import in_turns, seconds_of
from trainers.precision import tf32

METHODS = ("fgsm_rs", "sat", "trades", "weat_adv")
FORMS = ("float32", "bfloat16", "bfloat16, compiled")


def measure(rounds: int) -> Table:
    """One row a method and precision."""
    rates = {dtype: matmul_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows = [row for name in METHODS for row in _rows_of(name, rates, rounds)]
    peaks = ", ".join(f"{str(dtype).removeprefix('torch.')} {rate / 1e9:,.0f}" for dtype, rate in rates.items())
    return Table(
        "Where the time of a step goes",
        f"{the_net()}, {ON_WHAT}, medians of {rounds} rounds in turns. GFLOP/s of a large matrix product in the same "
        f"run: {peaks}; `of that` is what a whole step reaches. `attack` is its share of the step. Kernels and waits "
        "for the device are counted, without a clock.",
        ("method", "precision", "images/s", "GFLOP an image", "of that", "attack", "kernels", "waits"),
        tuple(rows),
    )


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, TF32 not allowed."""
    size = 8192 if ON_GPU else 2048
    left, right = (torch.rand(size, size, device=DEVICE).to(dtype) for _ in range(2))
    with tf32(allowed=False):
        left @ right
        seconds = statistics.median(seconds_of(lambda: left @ right) for _ in range(5))
    return 2 * size**3 / seconds


def _rows_of(name: str, rates: dict[torch.dtype, float], rounds: int) -> list[tuple[str, ...]]:
    torch._dynamo.reset()
    experiment, data = settings_of(name), always(images_of(BATCH))
    with tf32(allowed=False):
        plain = OurStep(experiment, data)
        with Operations() as counted:
            plain()
        operations = counted.count / BATCH
        rows = []
        for form in FORMS:
            step = OurStep(experiment, data, form)
            counts = ("–", "–") if form.endswith("compiled") else tuple(map(str, kernels_and_syncs(step)))
            timed = in_turns(step, {"attack": step.attack}, rounds)
            if form.endswith("compiled") and not step.is_compiled:
                continue
            speed = BATCH / timed.seconds
            share = speed * operations / rates[torch.bfloat16 if form.startswith("bfloat16") else torch.float32]
            rows.append(
                (name, form, f"{speed:.0f}", f"{operations / 1e9:.2f}", f"{share:.0%}",
                 f"{timed.ratios['attack'].median:.0%}", *counts)
            )  # fmt: skip
    return rows
