"""Peak memory of a process that trains a few steps, ours against the public loop."""

from __future__ import annotations

import multiprocessing
import statistics
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.results import Table
from benchmarks.timing import ratio_of

METHODS = ("fgsm_rs", "sat", "trades")
STEPS = 3


def measure(rounds: int) -> Table:
    """One row a method; the median of `rounds` processes of either side."""
    rows = []
    for method in METHODS:
        pairs = [[_in_a_process(method, public) for public in (False, True)] for _ in range(rounds)]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        rows.append((method, f"{ours:.0f}", f"{theirs:.0f}", str(ratio_of([b / a for a, b in pairs]))))
    return Table(
        "Memory of a training step",
        "Peak of a fresh process in MiB above its peak before the first step (of the device, on a GPU): "
        f"{STEPS} steps of the net and batch of the first table; median of {rounds} processes.",
        ("method", "ours", "public loop", "public / ours"),
        tuple(rows),
    )


def _in_a_process(method: str, public: bool) -> float:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_steps, args=(method, public, sending))
    process.start()
    sending.close()  # here: or a process that dies would be waited for without end
    mebibytes: float = receiving.recv()
    process.join()
    return mebibytes


def _steps(method: str, public: bool, sending: Connection) -> None:
    from benchmarks.subjects import BATCH, OurStep, PublishedStep, always, images_of, settings_of

    torch.set_num_threads(1)
    experiment, data = settings_of(method), always(images_of(BATCH))
    step = PublishedStep(method, experiment, data) if public else OurStep(experiment, data)
    before = _peak()
    for _ in range(STEPS):
        step()
    sending.send(_peak() - before)


def _peak() -> float:
    """MiB so far. Not by `getrusage`: on Linux that begins with the peak of the process that started this one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**10
