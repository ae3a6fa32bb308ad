"""The copy in which attacks search, against the network that it is a copy of, and compiled: one pass of each."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.results import Table
from benchmarks.subjects import BATCH, DEVICE, ON_GPU, ON_WHAT, images_of, settings_of
from benchmarks.timing import in_turns
from trainers.evaluation.searching import for_fast_search, for_search
from trainers.models.build import build_model
from trainers.models.compiled import Compiled
from trainers.precision import tf32

NETS: dict[str, dict[str, object]] = {
    "small, width 32": {"name": "small", "width": 32},
    "preact_resnet18, width 16, 1 block a stage": {"name": "preact_resnet18", "width": 16, "blocks_per_stage": 1},
    "preact_resnet18": {"name": "preact_resnet18"},
}
COPIES = {"float32": for_search, "bfloat16": for_fast_search}
# Calls in a turn: a single forward of a small net takes milliseconds.
REPEATS = 20 if ON_GPU else 3


def measure(rounds: int) -> Table:
    """One row a network, precision and pass."""
    rows = []
    for (name, model), precision in product(NETS.items(), COPIES):
        net = build_model(settings_of("sat", model)).to(DEVICE).eval()
        copy = COPIES[precision](net)
        compiled = Compiled(copy).eval()
        images = images_of(BATCH).floats().to(DEVICE)
        for what, call in {"forward": _forward, "and gradient": _gradient}.items():
            with tf32(allowed=False):
                others = {"net": partial(call, net, images), "compiled": partial(call, compiled, images)}
                timed = in_turns(partial(call, copy, images), others, rounds)
            if not compiled.is_compiled:
                raise RuntimeError("torch.compile does not work here: nothing to measure")
            speed = REPEATS * BATCH / timed.seconds
            rows.append((name, precision, what, f"{speed:.0f}", *(str(timed.ratios[other]) for other in others)))
    return Table(
        "One pass in the copy that attacks search in",
        f"Batch {BATCH}, {ON_WHAT}, {rounds} rounds in turns; median and middle half. The copy has no parameter "
        "gradients, folded batch norms and channels-last convolutions; `net` is what it is a copy of, as the package "
        "of AutoAttack would call it, in float32. `compiled / copy` below 1 is what compiling the copy would save.",
        ("network", "precision", "pass", "images/s", "net / copy", "compiled / copy"),
        tuple(rows),
    )


def _forward(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for _ in range(REPEATS):
            model(images)


def _gradient(model: nn.Module, images: Tensor) -> None:
    """By `backward`, as AutoAttack's package has it: the weights' gradients come along where they are wanted."""
    for _ in range(REPEATS):
        points = images.clone().requires_grad_()
        model(points).logsumexp(1).sum().backward()
