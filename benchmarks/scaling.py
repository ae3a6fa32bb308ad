"""Epochs per second on 1, 2 and 4 workers under DDP, with the global batch held."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results import Table
from benchmarks.timing import ratio_of
from trainers.records import read_records

WORDS = (
    "data.size=32", "model.name=small", "model.width=16", "method.name=sat", "attack.steps=5", "attack.epsilon=0.1",
    "optimizer.batch_size=64", "evaluation.epsilon=0.1", "evaluation.probe_samples=32", "data.holdout=64",
)  # fmt: skip
WORKERS = (1, 2, 4)


def measure(rounds: int) -> Table:
    """One row a number of workers; every worker has one thread."""
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(rounds):
        for workers in WORKERS:
            seconds[workers].append(_seconds_of_an_epoch(workers))
    rows = [
        (
            str(workers), f"{1 / statistics.median(times):.2f}",
            str(ratio_of([alone / time for alone, time in zip(seconds[1], times, strict=True)])),
        )
        for workers, times in seconds.items()
    ]  # fmt: skip
    return Table(
        "Workers under DDP",
        f"PGD-5 training of `small` on digits at 32x32, global batch 64, gloo, one thread a worker, {rounds} rounds in "
        f"turns, on {os.cpu_count()} CPUs (no GPU): beyond that number workers share them. Attacks exchange nothing, "
        "the update its gradients once.",
        ("workers", "epochs per second", "of one worker"),
        tuple(rows),
    )


def _seconds_of_an_epoch(workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers),
                "-m", "trainers", *WORDS, "epochs=3", "--run-dir", folder, "--threads", "1",
            ],
            check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        return min(record.metrics["train/seconds"] for record in read_records(Path(folder)))
