"""`orchestrator subsets`: which training images a reference net finds hard, as a file that `data.subset` names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.evaluation.subjects import own_subjects
from orchestrator.host import disk
from trainers.problems import InvalidInput
from trainers.whole_files import write_whole

if TYPE_CHECKING:
    from torch import nn

    from trainers.data.images import ImageSet
    from trainers.lens.points import Points


def write_subsets(
    reference: Path, *, checkpoint: str | None, output: Path, seed: int, batch_size: int, data_dir: Path | None,
    console: Console,
) -> None:  # fmt: skip
    """Sort the training images of a run's own split by its net's E(x) and write the four subsets of `lens.subsets`.

    Raises InvalidInput if the net is always right or always wrong, or for `checkpoint` both.
    """
    if checkpoint == "both":
        raise InvalidInput.single("--checkpoint", "both: subsets come from one net; allowed: best, last")
    disk.check_file(output, "--output")
    (subject,) = own_subjects(reference, checkpoint, data_dir)
    from trainers.data.images import load_splits, training_indices
    from trainers.foreign.weights import weights_digest
    from trainers.lens.subsets import choose_subsets

    data = subject.experiment.data.model_copy(update={"subset": None})
    indices, model = training_indices(data), subject.load()
    seen = _points(model, load_splits(data).train, batch_size, console)
    try:
        chosen = choose_subsets(seen.energy, seen.correct, seed=seed)
    except ValueError as error:
        raise InvalidInput.single(str(reference), str(error)) from error
    mean_energy = {name: float(seen.energy[rows].mean()) for name, rows in chosen.items()}
    content = {
        "data": f"{data.name} {data.size}x{data.size}",
        "reference": {
            "experiment": subject.experiment_digest,
            "epoch": subject.epoch,
            "weights": weights_digest(model),
            "training_accuracy": float(seen.correct.mean()),
        },
        "seed": seed,
        "mean_energy": mean_energy,
        "subsets": {name: indices[rows].tolist() for name, rows in chosen.items()},
    }
    write_whole(output, json.dumps(content) + "\n")
    console.print(f"{subject.source}: right on {100 * seen.correct.mean():.2f} % of {len(indices)} training images")
    for name, energy in mean_energy.items():
        console.print(f"{name:<14} {len(chosen[name])} images  mean E(x) {energy:+.3f}")
    common = len({*chosen["high_energy"].tolist()} & {*chosen["low_energy"].tolist()})
    if common:
        console.print(
            f"warning: {common} images are in high_energy and in low_energy: fewer than twice as many are classified "
            "correctly as wrongly. Such sets tell nothing apart; take a reference that is right more often",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    console.print(f"subsets: {output}", soft_wrap=True)


def _points(model: nn.Module, images: ImageSet, batch_size: int, console: Console) -> Points:
    """What the net makes of every training image, none augmented."""
    import torch

    from trainers.lens.points import Points, points
    from trainers.precision import tf32
    from trainers.ranks import Ranks

    device = Ranks.current().device
    model.to(device).eval()
    parts = []
    with torch.no_grad(), tf32(allowed=False), console.status("") as status:
        for start in range(0, len(images), batch_size):
            status.update(f"training images {start} of {len(images)}")
            batch = images.floats(start, start + batch_size).to(device)
            parts.append(points(model(batch), images.labels[start : start + batch_size].to(device)))
    return Points.joined(parts)
