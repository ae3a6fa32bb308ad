"""What the orchestrator costs: a study of short trials against the same trainings run bare, on the same CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from benchmarks.results import Table

EXPERIMENT = {
    "data": {"name": "digits", "size": 32}, "model": {"name": "small", "width": 16, "stem_stride": 2},
    "method": "fgsm_rs", "attack": {"epsilon": 0.1}, "optimizer": {"learning_rate": 0.1, "batch_size": 64},
    "evaluation": {"epsilon": 0.1, "probe_samples": 128},
}  # fmt: skip


def measure(rounds: int, trials: int = 8, epochs: int = 40) -> Table:
    """One row a round: `trials` trainings two at a time, first bare, then as a study, wall clock."""
    rows = []
    for round_ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            seeds = range(trials * round_, trials * (round_ + 1))
            bare, trainings = _bare(Path(folder), seeds, epochs)
            study = _study(Path(folder), seeds, epochs)
        overhead = f"{100 * (study / bare - 1):+.0f} %"
        rows.append((str(round_ + 1), f"{bare:.0f}", f"{trainings / trials:.0f}", f"{study:.0f}", overhead))
    return Table(
        "A study against its trainings run bare",
        f"{trials} trainings of {epochs} epochs, two at a time with one CPU thread each; bare: one process a training "
        "(`python -m trainers`), as a script would do it; study: `orchestrator sweep` from its start to its report, "
        "Ray, Optuna and MLflow included. Wall clock in seconds.",
        ("round", "bare", "of which a training", "study", "overhead"),
        tuple(rows),
    )


def _bare(folder: Path, seeds: range, epochs: int) -> tuple[float, float]:
    """Seconds until all are done, and the sum of each one's own."""

    def train(seed: int) -> float:
        began = time.perf_counter()
        file = folder / f"{seed}.yaml"
        file.write_text(yaml.safe_dump(EXPERIMENT | {"epochs": epochs, "seed": seed}))
        subprocess.run(
            [sys.executable, "-m", "trainers", str(file), "--run-dir", str(folder / f"bare{seed}"), "--threads", "1"],
            check=True, stdout=subprocess.DEVNULL, env=_environment(),
        )  # fmt: skip
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as two:
        each = list(two.map(train, seeds))
    return time.perf_counter() - began, sum(each)


def _study(folder: Path, seeds: range, epochs: int) -> float:
    file = folder / "study.yaml"
    study = {
        "name": "overhead",
        "experiment": EXPERIMENT | {"epochs": epochs},
        "space": {"seed": list(seeds)},
        "search": {"sampler": "grid", "trials": len(seeds), "checkpoint": "last"},
        "confirm": {"top": 0},
        "resources": {"workers": 1, "cpus_per_worker": 1},
    }
    file.write_text(yaml.safe_dump(study))
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "sweep", str(file)], cwd=folder, check=True,
        stdout=subprocess.DEVNULL, env=_environment(),
    )  # fmt: skip
    return time.perf_counter() - began


def _environment() -> dict[str, str]:
    """CPUs on either side: the study asks for no GPU."""
    here = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
