"""AutoAttack as `orchestrator evaluate` runs it, against the package that it calls, flags compared."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from torch import nn

from benchmarks.results import Table
from benchmarks.timing import ratio_of
from trainers.catalog.attacks import AUTOATTACK
from trainers.checkpoint import load
from trainers.config import parse
from trainers.data.images import ImageSet, load_splits
from trainers.evaluation.ranges import evaluate_range, fixed_subset
from trainers.evaluation.result import EXACT, FAST, Protocol
from trainers.loop import fit
from trainers.ranks import Ranks

SUBJECT = {
    "data": {"name": "digits", "size": 32}, "model": {"name": "preact_resnet18", "width": 16, "blocks_per_stage": 1},
    "method": "sat", "attack": {"epsilon": 0.1, "steps": 3}, "optimizer": {"learning_rate": 0.1, "batch_size": 32},
    "epochs": 2, "evaluation": {"epsilon": 0.1, "probe_samples": 32},
}  # fmt: skip
FORMS = (EXACT, FAST)


def measure(rounds: int, samples: int = 32) -> Table:
    """One row an attack, in the order of the standard version, each on what the last one left."""
    experiment = parse(SUBJECT)
    with tempfile.TemporaryDirectory() as folder:
        for _ in fit(experiment, Path(folder), ranks=Ranks.current()):
            pass
        model = load(Path(folder) / "checkpoints" / "best").load_model()
    images = fixed_subset(load_splits(experiment.data).test, samples)
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    ratios: dict[tuple[str, str], list[float]] = {(form, row): [] for form in FORMS for row in (*AUTOATTACK, "all")}
    flags: dict[str, dict[str, tuple[bool, ...]]] = {}
    theirs: list[bool] = []
    for _ in range(rounds):
        theirs, their_seconds = _package(model, images)
        for form in FORMS:
            flags[form], seconds = _ours(model, images, form)
            for stage in AUTOATTACK:
                ratios[form, stage].append(their_seconds[stage] / seconds[stage])
            ratios[form, "all"].append(sum(their_seconds.values()) / sum(seconds.values()))
    different = {form: sum(a != b for a, b in zip(flags[form][AUTOATTACK[-1]], theirs, strict=True)) for form in FORMS}
    standing = {stage: str(sum(flags[EXACT][stage])) for stage in AUTOATTACK}
    standing["all"] = f"{sum(flags[EXACT]['clean'])} before"
    return Table(
        "AutoAttack against its package",
        f"{samples} digits at 32x32, preact_resnet18 of width 16 with one block a stage, trained on PGD examples, "
        f"ε = 0.1, one CPU thread, time of the process, {rounds} rounds in turns. `fast` searches in bfloat16 and "
        f"judges in float32. Images whose final flags differ from the package's: {different[EXACT]}, fast "
        f"{different[FAST]}.",
        ("attack", "images standing after it", "package / ours", "package / ours, fast"),
        tuple((row, standing[row], *(str(ratio_of(ratios[form, row])) for form in FORMS)) for row in standing),
    )


Seconds = dict[str, float]


def _ours(model: nn.Module, images: ImageSet, precision: str) -> tuple[dict[str, tuple[bool, ...]], Seconds]:
    count = len(images)
    protocol = Protocol(
        "digits",
        "test",
        count,
        "0.1",
        "autoattack",
        0,
        shard=count,
        batch_size=count,
        checkpoint="best",
        precision=precision,
    )
    marks = [time.process_time()]
    flags = evaluate_range(model, images, protocol, 0, count, keep=lambda _: marks.append(time.process_time()))
    return dict(flags.standing), {
        stage: after - before for stage, (before, after) in zip(AUTOATTACK, pairwise(marks), strict=True)
    }


def _package(model: nn.Module, images: ImageSet) -> tuple[list[bool], Seconds]:
    """As its users call it, on the model as it was trained, whose weights need gradients.

    One stage at a time, for the clock: a test shows that the stages together are one whole run.
    """
    subject = copy.deepcopy(model).requires_grad_(True)
    pixels, labels = images.floats(), images.labels
    standing = (subject(pixels).argmax(1) == labels).tolist()
    seconds = {}
    for stage in AUTOATTACK:
        chosen = torch.tensor(standing).nonzero()[:, 0]
        runner = AutoAttack(subject, norm="Linf", eps=0.1, version="standard", device="cpu", seed=0)
        runner.attacks_to_run = [stage]
        began = time.process_time()
        adversarial, _ = runner.run_standard_evaluation(pixels[chosen], labels[chosen], batch_size=len(images))
        seconds[stage] = time.process_time() - began
        correct = subject(adversarial).argmax(1) == labels[chosen]
        for index, stands in zip(chosen.tolist(), correct.tolist(), strict=True):
            standing[index] = stands
    return standing, seconds
