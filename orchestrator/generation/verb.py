"""`orchestrator generate`: make images, then write them, figures, a table and a page, and hand them to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from orchestrator import tracking
from orchestrator.generation.figures import SHOWN, energies, energy_lines, mosaic
from orchestrator.generation.making import SHARDS_FOLDER, Made, Recipe, make
from orchestrator.lens.networks import Network, file_name
from orchestrator.report.figure_data import Line
from orchestrator.report.files import write_plate, write_table, write_whole, write_with
from orchestrator.report.markup import Markup, element, table
from orchestrator.report.page import document
from orchestrator.report.plates import Plate
from trainers import catalog
from trainers.problems import InvalidInput, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

INITS = ("pca", "local_pca", "gaussian", "noise")
PAGE_FILE, FIGURES_FOLDER, IMAGES_FOLDER, TABLE = "generated.html", "figures", "images", "metrics"
_PNG_LIMIT = 200


@dataclass(frozen=True)
class Judges:
    """Files of pretrained weights and a run folder; what is None is not measured."""

    inception: Path | None = None
    alexnet: Path | None = None
    classifier: Path | None = None


def recipes(
    inits: str, classes: str | None, num_classes: int, *, per_class: int, seed: int, shard: int, variance: float | None,
    spread: float | None, neighbors: int, steps: int, step_size: float, inertia: float, noise: float,
    tolerance: float | None,
) -> list[Recipe]:  # fmt: skip
    """One for each init. Raises InvalidInput, naming the option."""
    for option, value, low in (
        ("--per-class", per_class, 1), ("--shard", shard, 1), ("--steps", steps, 1), ("--neighbors", neighbors, 2),
        ("--seed", seed, 0), ("--step-size", step_size, 0), ("--inertia", inertia, 0), ("--noise", noise, 0),
        ("--tolerance", tolerance or 0, 0), ("--spread", spread or 0, 0),
    ):  # fmt: skip
        if value < low:
            raise InvalidInput.single(option, f"{value}: must be at least {low}")
    if inertia >= 1:
        raise InvalidInput.single("--inertia", f"{inertia}: must be below 1, or chains never come to rest")
    if variance is not None and not 0 < variance <= 1:
        raise InvalidInput.single("--variance", f"{variance}: must be above 0 and at most 1")
    wanted = inits.split(",")
    for init in wanted:
        if init not in INITS:
            raise InvalidInput.single("--init", unknown_name(init, INITS, "init"))
    starts = {"variance": variance, "spread": spread, "neighbors": neighbors}
    dynamics = {"step_size": step_size, "inertia": inertia, "noise": noise, "steps": steps}
    chosen = _classes(classes, num_classes)
    return [Recipe(init, chosen, per_class, seed, shard, starts, dynamics, tolerance) for init in wanted]


def _classes(text: str | None, num_classes: int) -> tuple[int, ...]:
    if text is None:
        return tuple(range(num_classes))
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) < num_classes for part in parts) or len(set(parts)) < len(parts):
        raise InvalidInput.single("--classes", f"{text!r}: allowed: different numbers from 0 to {num_classes - 1}")
    return tuple(int(part) for part in parts)


def create(
    networks: Sequence[Network], wanted: Sequence[Recipe], judges: Judges, *, address: str | None, threads: int,
    output: Path, track: bool, console: Console,
) -> list[Line]:  # fmt: skip
    """Images of every network by every recipe; returns the lines of the table."""
    uri = tracking.resolved_uri(None)
    if track:
        tracking.check_reachable(uri)
    measures = _Measures(judges, networks[0])
    try:
        made = make(
            [(network, recipe) for network in networks for recipe in wanted], output, address=address, threads=threads,
            console=console,
        )  # fmt: skip
    except KeyboardInterrupt:
        console.print(f"the same command again continues from {output}", soft_wrap=True)
        raise
    lines = [_line(one) | measures(one, wanted[0].seed) for one in made]
    for one in made:
        _write_images(one, output / IMAGES_FOLDER)
    write_table(lines, output / TABLE)
    _write_page(made, lines, wanted[0], networks, output)
    _print(lines, console)
    console.print(f"images, figures and table: {output / PAGE_FILE}", soft_wrap=True)
    if track:
        _publish(made, lines, wanted[0], output, uri, console)
    return lines


class _Measures:
    """The metrics that the given judges allow, against all training images of the classes that were generated."""

    def __init__(self, judges: Judges, network: Network) -> None:
        from trainers.generation.quality import Extractor, classifier, inception, perceptual_distance

        self._extractors: list[Extractor] = []
        if judges.inception is not None:
            self._extractors.append(inception(judges.inception))
        if judges.classifier is not None:
            from orchestrator.subjects import own_subjects

            (subject,) = own_subjects(judges.classifier, None, None)
            self._extractors.append(classifier(subject.load()))
        self._distance = None if judges.alexnet is None else perceptual_distance(judges.alexnet)
        self._data = network.subject.experiment.data

    def __call__(self, made: Made, seed: int) -> Line:
        if not self._extractors and self._distance is None:
            return {}
        import torch

        from trainers.data.images import load_splits
        from trainers.generation.quality import distribution_metrics, perceptual_metrics

        train = load_splits(self._data).train
        chosen = torch.isin(train.labels, torch.from_numpy(np.unique(made.labels)))
        real, real_labels = _channels_first(train.images[chosen]), train.labels[chosen]
        generated, labels = _channels_first(torch.from_numpy(made.images)), torch.from_numpy(made.labels)
        found: dict[str, float] = {}
        for extractor in self._extractors:
            found |= distribution_metrics(generated, real, extractor, batch_size=250, seed=seed)
        if self._distance is not None:
            found |= perceptual_metrics(generated, real, labels, real_labels, self._distance, seed=seed)
        return dict(found)


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous()


def _line(made: Made) -> Line:
    present = np.unique(made.labels)
    return {
        "network": made.network, "init": made.init, "images": len(made.images),
        "steps": float(made.steps.mean()), "images_per_second": len(made.images) / made.seconds,
        "final_energy": float(made.target_energy[-1, present].mean()),
        "training_energy": float(made.class_energy[present].mean()),
    }  # fmt: skip


def _write_images(made: Made, folder: Path) -> None:
    """All as `.npz` (keys image and label, as `data.extra` reads them); as PNG too while they are few."""
    from PIL import Image

    name = f"{file_name(made.network)}-{made.init}"
    write_with(folder / f"{name}.npz", lambda file: np.savez(file, image=made.images, label=made.labels))
    if len(made.images) > _PNG_LIMIT:
        return
    counts: dict[int, int] = {}
    for image, label in zip(made.images, made.labels.tolist(), strict=True):
        counts[label] = counts.get(label, -1) + 1
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        write_with(folder / name / f"class{label:03d}-{counts[label]:04d}.png", partial(picture.save, format="PNG"))


def _write_page(
    made: Sequence[Made], lines: Sequence[Line], recipe: Recipe, networks: Sequence[Network], output: Path
) -> None:
    how = _how(recipe, networks)
    plates = [
        *(
            Plate(
                f"mosaic-{file_name(one.network)}-{one.init}", f"{one.network}, starts from {one.init}",
                f"The first {min(SHOWN, recipe.per_class)} images of each class, {one.steps.mean():.0f} steps on "
                f"average. {how}", mosaic(one), [], "",
            )
            for one in made
        ),
        Plate(
            "energies", "Energies along the chains",
            "Joint energies E(x_n, k) in nats over the steps n: of the class that is generated, and the mean of the "
            "other classes'; thin: one class, thick: mean over classes; a chain that has stopped counts with its last "
            f"energy. Dashed: mean E(x, y) of training images. {how}", energies(made), energy_lines(made), "",
        ),
    ]  # fmt: skip
    columns = list(dict.fromkeys(column for line in lines for column in line))
    rows = [[_cell(line.get(column, "")) for column in columns] for line in lines]
    sections: list[Markup] = [
        element("h1", "Generated images"),
        element("p", how, class_="kind"),
        table(columns, rows, left=frozenset({0, 1})),
    ]
    folder = output / FIGURES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    sections += [write_plate(plate, folder) for plate in plates]
    write_whole(output / PAGE_FILE, document("Generated images", sections))


def _how(recipe: Recipe, networks: Sequence[Network]) -> str:
    dynamics = recipe.dynamics
    stop = "all steps" if recipe.tolerance is None else f"stopped within {recipe.tolerance:g} std of the class's energy"
    sources = "; ".join(f"{network.name} = {network.subject.source}" for network in networks)
    return (
        f"SGLD on E(x, y): η = {dynamics['step_size']:g}, ζ = {dynamics['inertia']:g}, noise {dynamics['noise']:g}, at "
        f"most {dynamics['steps']} steps, {stop}; {recipe.per_class} images a class, seed {recipe.seed}, shards of "
        f"{recipe.shard}, float32. {sources}."
    )


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print(lines: Sequence[Line], console: Console) -> None:
    from rich.table import Table

    columns = list(dict.fromkeys(column for line in lines for column in line))
    printed = Table(box=None, pad_edge=False)
    for column in columns:
        printed.add_column(column.replace("_", " "), justify="left" if column in ("network", "init") else "right")
    for line in lines:
        printed.add_row(*(_cell(line.get(column, "")) for column in columns))
    console.print(printed)


def _publish(
    made: Sequence[Made], lines: Sequence[Line], recipe: Recipe, output: Path, uri: str, console: Console
) -> None:
    """To MLflow; what is written already stands, whatever the server does."""
    metrics = {
        f"{file_name(str(line['network']))}/{line['init']}/{name.replace(' ', '_')}": value
        for line in lines
        for name, value in line.items()
        if isinstance(value, float)
    }
    identity = recipe.digest(" ".join(f"{one.network} {one.init} {one.images.tobytes()[:4096]!r}" for one in made))
    born = max(file.stat().st_mtime for file in (output / SHARDS_FOLDER).glob("*.npz"))
    try:
        tracking.log_folder(
            uri, identity=identity, kind="generation", name="generated images", time=born,
            params={"recipe": _how(recipe, [])}, metrics=metrics,
            artifacts=[output / PAGE_FILE, output / FIGURES_FOLDER],
        )  # fmt: skip
    except Exception as error:
        console.print(f"MLflow has not got it ({error}); the same command again sends it", style="yellow", markup=False)
        return
    console.print(f"MLflow: {uri}", soft_wrap=True)


def number_of_classes(networks: Sequence[Network]) -> int:
    """That of the data set which all networks share."""
    return catalog.DATASETS[networks[0].subject.experiment.data.name].num_classes
