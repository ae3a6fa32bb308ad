"""`orchestrator lens`: measure once, then write figures, tables and a page, and hand them to MLflow."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from operator import methodcaller
from pathlib import Path

from rich.console import Console

from orchestrator.evaluation.protocols import protocol_for
from orchestrator.evaluation.verb import protocol_epsilon, settings_of
from orchestrator.lens.drift import drift_animation
from orchestrator.lens.measuring import Measured, measure
from orchestrator.lens.networks import Network, file_name, stored_epochs
from orchestrator.lens.plates import Lens, followed, plates, sample_columns, tables
from orchestrator.lens.seen import Seen, check_finite, label
from orchestrator.lens.smoothness import rank_correlations
from orchestrator.pages.document import document
from orchestrator.pages.files import FIGURES_FOLDER, remove_earlier, write_parquet, write_table
from orchestrator.pages.markup import Markup, element, table
from orchestrator.pages.plate import write_plate
from orchestrator.tracking import server
from search_spaces.study import Confirm
from trainers.catalog.attacks import stages
from trainers.evaluation.result import Protocol
from trainers.problems import InvalidInput
from trainers.whole_files import write_whole, write_with

PAGE_FILE = "lens.html"


def lens_protocol(networks: Sequence[Network], settings: Confirm, epsilon: str | None) -> Protocol:
    """The protocol that all networks share. Raises InvalidInput if their ε differ and none is said."""
    epsilon = protocol_epsilon(epsilon)
    given = {str(one.subject.experiment.evaluation.epsilon.plain()) for one in networks}
    if epsilon is None and len(given) > 1:
        raise InvalidInput.single("--epsilon", f"is missing: the networks' own evaluation ε differ ({sorted(given)})")
    found = protocol_for(networks[0].subject.experiment, settings, "weights")
    # A network is known by its weights: neither by which checkpoint it is nor by how it was trained.
    return replace(found, epsilon=epsilon or found.epsilon, training="")


def look(
    networks: Sequence[Network], *, attack: str, samples: int, epsilon: str | None, seed: int, shard: int,
    batch_size: int, epochs: str | None, data_dir: Path | None, address: str | None, threads: int | None,
    output: Path, track: bool, console: Console,
) -> None:  # fmt: skip
    """Measure all networks under all attacks, the stored `epochs` of runs under PGD-20, and write everything.

    Without PGD-20 among the attacks, stored epochs are seen under the first.
    """
    settings = settings_of(attack=attack, samples=samples, seed=seed, shard=shard, batch_size=batch_size)
    chosen = stages(settings.attack)
    if not chosen:
        raise InvalidInput.single("--attack", "clean: a lens compares images with their adversarial versions")
    protocol = lens_protocol(networks, settings, epsilon)
    uri = server.uri_of_no_study() if track else None
    if uri is not None:
        server.check_reachable(uri)
    followed_stage = "pgd20" if "pgd20" in chosen else chosen[0]
    stored = [] if epochs is None else stored_epochs(networks, epochs, data_dir)
    wanted = [(one, ("clean", *chosen)) for one in networks] + [(one, ("clean", followed_stage)) for one in stored]
    console.print(protocol.key, soft_wrap=True)
    try:
        measured = measure(wanted, protocol, output, address=address, threads=threads, console=console)
    except KeyboardInterrupt:
        console.print(f"the same command again continues from {output}", soft_wrap=True)
        raise
    seen = [
        Seen(network, found.points["clean"], {stage: found.points[stage] for stage in listed if stage != "clean"})
        for (network, listed), found in zip(wanted, measured, strict=True)
    ]
    check_finite(seen)
    lens = Lens(protocol, seen[: len(networks)], seen[len(networks) :])
    write(lens, output)
    _print(lens, console)
    console.print(f"figures and tables: {output / PAGE_FILE}", soft_wrap=True)
    if uri is not None:
        _publish(uri, lens, measured[: len(networks)], output, console)


def _publish(uri: str, lens: Lens, measured: Sequence[Measured], output: Path, console: Console) -> None:
    names = {f"network.{place}": one.name for place, one in enumerate(lens.seen)}
    who = [one.identity for one in measured]
    identity = hashlib.sha256(repr((lens.protocol.key, names, who)).encode()).hexdigest()[:32]
    born = max(file.stat().st_mtime for one in measured for file in one.files)
    server.log_folder(
        uri, console,
        identity=identity, kind="lens", name=f"lens of {len(lens.seen)} networks", time=born,
        params=names | {"protocol": lens.protocol.key}, metrics=metrics(lens),
        artifacts=[output / PAGE_FILE, output / FIGURES_FOLDER],
    )  # fmt: skip


def write(lens: Lens, output: Path) -> None:
    """`lens.html`; beside it each figure as SVG and PNG with its data as CSV and Parquet; animations; all samples."""
    folder = output / FIGURES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    remove_earlier(folder, "distributions-*", "drift-*")
    sections: list[Markup] = [element("h1", "Energy lens"), element("p", lens.protocol.key, class_="kind")]
    sections.append(_summary(lens))
    sections += [write_plate(plate, folder, in_full=True) for plate in plates(lens)]
    for name, lines in tables(lens).items():
        write_table(lines, folder / name)
    for name, group in followed(lens).items():
        animation = drift_animation(group)
        if animation is not None:
            write_with(folder / f"drift-{file_name(name)}.gif", methodcaller("write", animation))
    write_parquet(sample_columns(lens), folder / "samples.parquet")
    write_whole(output / PAGE_FILE, document("Energy lens", sections))


def metrics(lens: Lens) -> dict[str, float]:
    """Name -> value of what a tracker should plot: accuracies and mean ΔE of each network under each attack."""
    found: dict[str, float] = {}
    for one in lens.seen:
        name = file_name(one.name)
        found[f"{name}/clean_accuracy"] = float(one.natural.correct.mean())
        for stage in one.attacked:
            marginal, joint = one.deltas(stage)
            found |= {
                f"{name}/{stage}/robust_accuracy": one.robust_accuracy(stage),
                f"{name}/{stage}/delta_energy/mean": float(marginal.mean()),
                f"{name}/{stage}/delta_joint_energy/mean": float(joint.mean()),
            }
    found |= {f"rank_correlation/{one.quantity}": one.spearman for one in rank_correlations(lens.seen)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _summary(lens: Lens) -> Markup:
    """Accuracy under each attack, and mean ΔE(x) with its deviation, of every network."""
    header = ["Network", "Clean [%]", *(label(stage) for stage in lens.seen[0].attacked)]
    accuracies, changes = [], []
    for one in lens.seen:
        deltas = [one.deltas(stage)[0] for stage in one.attacked]
        robust = [f"{100 * one.robust_accuracy(stage):.2f}" for stage in one.attacked]
        accuracies.append([one.name, f"{100 * one.natural.correct.mean():.2f}", *robust])
        changes.append([one.name, "", *(f"{values.mean():+.3f} ± {values.std():.3f}" for values in deltas)])
    words = frozenset({0})
    return element(
        "section",
        element("h2", "Robust accuracy [%] under each attack"),
        table(header, accuracies, left=words),
        element("h2", "Mean ΔE(x) ± standard deviation over images [nats]"),
        table([header[0], "", *header[2:]], changes, left=words),
        element("p", "Everything measured: ", element("code", f"{FIGURES_FOLDER}/samples.parquet"), class_="note"),
    )


def _print(lens: Lens, console: Console) -> None:
    """Accuracy and mean ΔE(x) of every network under every attack, then the rank correlations over networks."""
    from rich.table import Table

    console.print("\nrobust accuracy in %, below it mean ΔE(x) in nats", soft_wrap=True)
    printed = Table(box=None, pad_edge=False)
    for heading in ("network", "clean", *(label(stage) for stage in lens.seen[0].attacked)):
        printed.add_column(heading, justify="left" if heading == "network" else "right")
    for one in lens.seen:
        accuracies = [f"{100 * one.robust_accuracy(stage):.1f}" for stage in one.attacked]
        changes = [f"{one.deltas(stage)[0].mean():+.2f}" for stage in one.attacked]
        printed.add_row(one.name, f"{100 * one.natural.correct.mean():.1f}", *accuracies)
        printed.add_row("", "", *changes)
    console.print(printed)
    for found in rank_correlations(lens.seen):
        console.print(
            f"Spearman of robust accuracy with {found.quantity} over {found.networks} networks: {found.spearman:+.2f}",
            soft_wrap=True,
        )
