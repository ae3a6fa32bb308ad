"""`orchestrator generate`: make images, then write them, figures, a table and a page, and hand them to MLflow."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from orchestrator.generation.figures import SHOWN, energies, energy_lines, mosaic
from orchestrator.generation.judging import Judges, Measures
from orchestrator.generation.making import Made, Sampling, make
from orchestrator.generation.options import INITS, Generation
from orchestrator.lens.networks import Network, file_name
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.document import document
from orchestrator.pages.files import FIGURES_FOLDER, remove_earlier, write_table
from orchestrator.pages.markup import Markup, element, table
from orchestrator.pages.plate import Plate, write_plate
from orchestrator.tracking import server
from trainers import catalog
from trainers.generation.settings import TOLERANCE
from trainers.problems import InvalidInput
from trainers.whole_files import write_whole, write_with

PAGE_FILE, IMAGES_FOLDER, TABLE = "generated.html", "images", "metrics"
_PNG_LIMIT = 200
# As people read columns; in the CSV they keep the names of code. Energies in nats.
_HEADINGS = {
    "images_per_second": "images/s", "final_energy": "final E(x,y) [nats]", "training_energy": "of training images",
}  # fmt: skip


def samplings(settings: Generation, num_classes: int) -> list[Sampling]:
    """One for each init. Raises InvalidInput for a class that the data set has not."""
    classes = tuple(range(num_classes)) if settings.classes is None else settings.classes
    if not 0 <= min(classes) <= max(classes) < num_classes:
        named = ",".join(map(str, classes))
        raise InvalidInput.single("classes", f"{named}: allowed: different numbers from 0 to {num_classes - 1}")
    tolerance = TOLERANCE if settings.tolerance is None else settings.tolerance
    given = settings.start_settings
    return [
        Sampling(
            init=init,
            classes=classes,
            per_class=settings.per_class,
            seed=settings.seed,
            shard=settings.shard,
            starts={name: given[name] for name in INITS[init] if name in given},
            dynamics={
                "step_size": settings.step_size, "inertia": settings.inertia, "noise": settings.noise,
                "steps": settings.steps,
            },
            tolerance=tolerance if settings.adaptive_stop else None,
            compiled=settings.compile,
        )
        for init in settings.init
    ]  # fmt: skip


def create(
    networks: Sequence[Network], wanted: Sequence[Sampling], judges: Judges, *, address: str | None, threads: int,
    output: Path, track: bool, console: Console,
) -> None:  # fmt: skip
    """Images of every network by every sampling, with a table of numbers about them."""
    uri = server.uri_of_no_study() if track else None
    if uri is not None:
        server.check_reachable(uri)
    measures = Measures(judges, networks[0], wanted[0])
    try:
        made = make(networks, wanted, output, address=address, threads=threads, console=console)
    except KeyboardInterrupt:
        console.print(f"the same command again continues from {output}", soft_wrap=True)
        raise
    lines = [_line(one) | measures.of(one, wanted[0].seed) for one in made]
    for one in made:
        _write_images(one, output / IMAGES_FOLDER)
    write_table(lines, output / TABLE)
    _write_page(made, lines, wanted[0], networks, output)
    _print(lines, console)
    for warning in _not_finite(made):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    console.print(f"images, figures and table: {output / PAGE_FILE}", soft_wrap=True)
    if uri is not None:
        _publish(uri, made, lines, wanted[0], output, console)


def _line(made: Made) -> CsvRow:
    present = np.unique(made.labels)
    return {
        "network": made.network, "init": made.init, "images": len(made.images),
        "steps": float(made.steps.mean()), "images_per_second": len(made.images) / made.seconds,
        "final_energy": float(made.target_energy[-1, present].mean()),
        "training_energy": float(made.class_energy[present].mean()),
    }  # fmt: skip


def _not_finite(made: Sequence[Made]) -> list[str]:
    """Of which network energies can't be compared, or chains stopped, since its logits overflow."""
    found = {}
    for one in made:
        present = np.unique(one.labels)
        lost = present[~np.isfinite(one.class_energy[present])]
        if len(lost):
            named = ", ".join(map(str, lost))
            found[one.network] = (
                f"{one.network}: E(x,y) of training images is not finite in class {named}: there is nothing to compare "
                "these chains with, and no energy at which --adaptive-stop could end them"
            )
        elif not np.isfinite(one.target_energy[:, present]).all():
            found[one.network] = f"{one.network}: E(x,y) along its chains is not finite from {one.init} starts"
    return list(found.values())


def _write_images(made: Made, folder: Path) -> None:
    """All as `.npz` (keys image and label, as `data.extra` reads them); as PNG too while they are few."""
    from PIL import Image

    name = f"{file_name(made.network)}-{made.init}"
    write_with(folder / f"{name}.npz", lambda file: np.savez(file, image=made.images, label=made.labels))
    shutil.rmtree(folder / name, ignore_errors=True)  # pictures of another call are not in the table
    if len(made.images) > _PNG_LIMIT:
        return
    counts: dict[int, int] = {}
    for image, label in zip(made.images, made.labels.tolist(), strict=True):
        counts[label] = counts.get(label, -1) + 1
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        write_with(folder / name / f"class{label:03d}-{counts[label]:04d}.png", partial(picture.save, format="PNG"))


def _write_page(
    made: Sequence[Made], lines: Sequence[CsvRow], sampling: Sampling, networks: Sequence[Network], output: Path
) -> None:
    sources = "; ".join(f"{network.name} = {network.subject.source}" for network in networks)
    how = f"{_how(sampling)} {sources}."
    plates = [
        *(
            Plate(
                f"mosaic-{file_name(one.network)}-{one.init}", f"{one.network}, starts from {one.init}",
                f"The first {min(SHOWN, sampling.per_class)} images of each class, {one.steps.mean():.0f} steps on "
                f"average. {how}", mosaic(one), [],
            )
            for one in made
        ),
        Plate(
            "energies", "Energies along the chains",
            "Joint energies E(x_n, k) in nats over the steps n: of the class that is generated, and the mean of the "
            "other classes'; thin: one class, thick: mean over classes; a chain that has stopped counts with its last "
            f"energy. Dashed: mean E(x, y) of training images. {how}", energies(made), energy_lines(made),
        ),
    ]  # fmt: skip
    columns = list(dict.fromkeys(column for line in lines for column in line))
    rows = [[_cell(line.get(column, "")) for column in columns] for line in lines]
    sections: list[Markup] = [
        element("h1", "Generated images"),
        element("p", how, class_="kind"),
        table([_HEADINGS.get(column, column) for column in columns], rows, left=frozenset({0, 1})),
    ]
    folder = output / FIGURES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    remove_earlier(folder, "mosaic-*")
    sections += [write_plate(plate, folder, in_full=True) for plate in plates]
    write_whole(output / PAGE_FILE, document("Generated images", sections))


def _how(sampling: Sampling) -> str:
    dynamics = sampling.dynamics
    steps = f"{dynamics['steps']} steps"
    if sampling.tolerance is not None:
        steps = f"at most {steps}, stopped within {sampling.tolerance:g} std of the class's energy"
    return (
        f"SGLD on E(x, y): η = {dynamics['step_size']:g}, ζ = {dynamics['inertia']:g}, noise {dynamics['noise']:g}, "
        f"{steps}; {sampling.per_class} images a class, seed {sampling.seed}, shards of "
        f"{sampling.shard}, float32."
    )


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print(lines: Sequence[CsvRow], console: Console) -> None:
    from rich.table import Table

    # The number of images is the same in all lines, and they have to fit a terminal.
    columns = [column for column in dict.fromkeys(column for line in lines for column in line) if column != "images"]
    printed = Table(box=None, pad_edge=False)
    for column in columns:
        heading = _HEADINGS.get(column, column)
        left = column in ("network", "init")
        printed.add_column(heading, justify="left" if left else "right", overflow="fold")
    for line in lines:
        printed.add_row(*(_cell(line.get(column, "")) for column in columns))
    console.print(printed)


def _publish(
    uri: str, made: Sequence[Made], lines: Sequence[CsvRow], sampling: Sampling, output: Path, console: Console
) -> None:
    metrics = {
        f"{file_name(str(line['network']))}/{line['init']}/{name.replace(' ', '_')}": value
        for line in lines
        for name, value in line.items()
        if isinstance(value, float)
    }
    identity = hashlib.sha256(repr([(one.network, one.digest) for one in made]).encode()).hexdigest()[:32]
    born = max(file.stat().st_mtime for one in made for file in one.files)
    server.log_folder(
        uri, console,
        identity=identity, kind="generation", name="generated images", time=born,
        params={"sampling": _how(sampling)}, metrics=metrics,
        artifacts=[output / PAGE_FILE, output / FIGURES_FOLDER],
    )  # fmt: skip


def number_of_classes(networks: Sequence[Network]) -> int:
    """That of the data set which all networks share."""
    return catalog.DATASETS[networks[0].subject.experiment.data.name].num_classes
