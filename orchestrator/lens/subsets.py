"""`orchestrator subsets`: which training images a reference net finds hard, as a file that `data.subset` names."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from orchestrator import disk
from orchestrator.subjects import own_subjects
from trainers.problems import InvalidInput
from trainers.whole_files import write_whole


def write_subsets(
    checkpoint: Path, *, rule: str | None, output: Path, seed: int, batch_size: int, data_dir: Path | None,
    console: Console,
) -> None:  # fmt: skip
    """Sort the training images of a run's own split by its net's E(x) and write the four subsets of `lens.subsets`.

    Images are not augmented. Raises InvalidInput if the net is always right or always wrong, or for `rule` both.
    """
    if rule == "both":
        raise InvalidInput.single("--checkpoint", "both: subsets come from one net; allowed: best, last")
    disk.check_file(output, "--output")
    (subject,) = own_subjects(checkpoint, rule, data_dir)
    import numpy as np
    import torch

    from trainers.data.images import load_splits, training_indices
    from trainers.foreign.weights import weights_digest
    from trainers.lens.points import Points, points
    from trainers.lens.subsets import choose_subsets
    from trainers.precision import tf32
    from trainers.ranks import Ranks

    data = subject.experiment.data.model_copy(update={"subset": None})
    indices, images = training_indices(data), load_splits(data).train
    device = Ranks.current().device
    model = subject.load().to(device).eval()
    parts = []
    with torch.no_grad(), tf32(allowed=False), console.status("") as status:
        for start in range(0, len(images), batch_size):
            status.update(f"training images {start} of {len(images)}")
            batch = images.floats(start, start + batch_size).to(device)
            parts.append(points(model(batch), images.labels[start : start + batch_size].to(device)))
    seen = Points.joined(parts)
    try:
        chosen = choose_subsets(seen.energy, seen.correct, seed=seed)
    except ValueError as error:
        raise InvalidInput.single(str(checkpoint), str(error)) from error
    content = {
        "data": f"{data.name} {data.size}x{data.size}",
        "reference": {
            "experiment": subject.experiment_digest,
            "epoch": subject.epoch,
            "weights": weights_digest(model),
            "training_accuracy": float(seen.correct.mean()),
        },
        "seed": seed,
        "mean_energy": {name: float(seen.energy[rows].mean()) for name, rows in chosen.items()},
        "subsets": {name: indices[rows].tolist() for name, rows in chosen.items()},
    }
    write_whole(output, json.dumps(content) + "\n")
    size = len(chosen["random"])
    console.print(f"{subject.source}: right on {100 * seen.correct.mean():.2f} % of {len(images)} training images")
    for name, energy in content["mean_energy"].items():  # type: ignore[attr-defined]
        console.print(f"{name:<14} {size} images  mean E(x) {energy:+.3f}")
    common = len(np.intersect1d(chosen["high_energy"], chosen["low_energy"]))
    if common:
        console.print(
            f"warning: {common} images are in high_energy and in low_energy: fewer than twice as many are classified "
            "correctly as wrongly. Such sets tell nothing apart; take a reference that is right more often",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    console.print(f"subsets: {output}", soft_wrap=True)
