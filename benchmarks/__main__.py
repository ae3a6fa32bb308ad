"""`python -m benchmarks [NAME…] [--rounds N]`: measure, print, and keep in RESULTS.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks import (
    autoattack,
    compiled_step,
    diagnostics,
    memory,
    recipes,
    scaling,
    search_copy,
    step_profile,
    study_overhead,
    training_step,
)
from benchmarks.results import Table, keep

BENCHMARKS: dict[str, tuple[Callable[[int], Table], int]] = {
    "training_step": (training_step.measure, 7),
    "step_profile": (step_profile.measure, 7),
    "recipes": (recipes.measure, 2),
    "diagnostics": (diagnostics.measure, 7),
    "compiled_step": (compiled_step.measure, 7),
    "search_copy": (search_copy.measure, 5),
    "autoattack": (autoattack.measure, 2),
    "study_overhead": (study_overhead.measure, 2),
    "scaling": (scaling.measure, 3),
    "memory": (memory.measure, 3),
}


def main() -> None:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, help="default: as many as the benchmark needs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or BENCHMARKS:
        measure, rounds = BENCHMARKS[name]
        table = measure(arguments.rounds or rounds)
        print(f"{table.markdown()}\n", flush=True)
        keep(name, table)


if __name__ == "__main__":
    main()
