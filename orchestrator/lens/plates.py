"""All figures of a lens with their captions and data, and the tables without a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from orchestrator.lens import classes, distributions, drift, smoothness, steps, training
from orchestrator.lens.networks import Network, file_name
from orchestrator.lens.seen import Seen, label, main_stage
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.plate import Plate
from trainers import catalog
from trainers.evaluation.result import Protocol, subset_indices
from trainers.lens.points import Array

_NO_RUN = "None of the networks is a run folder with records."


@dataclass(frozen=True)
class Lens:
    """What the figures are drawn from: every network under every attack, and the stored epochs of runs."""

    protocol: Protocol
    seen: Sequence[Seen]
    epochs: Sequence[Seen] = ()

    def protocol_text(self, shown: Sequence[Seen]) -> str:
        """What a caption says of how it was measured, and of whom."""
        protocol = self.protocol
        return (
            f"{protocol.samples} {protocol.split} images of {protocol.data}, L∞ attacks with ε = {protocol.epsilon} "
            f"(pixels in [0, 1]), seed {protocol.seed}, batches of {protocol.batch_size}, float32. Networks: "
            + "; ".join(f"{one.name} = {_who(one.network)}" for one in shown)
            + "."
        )


def plates(lens: Lens) -> list[Plate]:
    """Every figure, in the order of the page."""
    return [
        *(_distributions(lens, one) for one in lens.seen),
        _energy_over_steps(lens),
        _drift(lens),
        *(_drift_over_epochs(lens, name, group) for name, group in followed(lens).items()),
        _training(lens),
        _abnormal(lens),
        _delta_energy(lens),
        _classes(lens),
        _margin(lens),
    ]


def _distributions(lens: Lens, one: Seen) -> Plate:
    return Plate(
        f"distributions-{file_name(one.name)}",
        f"Energies before and after each attack: {one.name}",
        "Histograms of E(x) and E(x,y) of natural images (filled) and of adversarial ones (outline); values in the "
        "outermost thousandth are drawn at the edge. Robust: share of images classified correctly before and after the "
        f"attack.{_left_out(one)} {lens.protocol_text([one])}",
        distributions.energy_distributions(one),
        distributions.distribution_lines(one),
    )


def _energy_over_steps(lens: Lens) -> Plate:
    return Plate(
        "energy_over_steps",
        "Energies at every step of PGD",
        "Mean E(x_t) and E(x_t,y) at the image (x), at the random start of PGD-20 (t = 0) and after each of its steps "
        f"of ε/4 on the cross-entropy. {lens.protocol_text(lens.seen)}",
        steps.energy_over_steps(lens.seen),
        steps.step_lines(lens.seen),
        "PGD-20 is not among the attacks.",
    )


def _drift(lens: Lens) -> Plate:
    return Plate(
        "drift",
        "Where the attack drives images",
        f"Arrows from (E(x), E(x,y)) to (E(x*), E(x*,y)) under {_main_attack(lens.seen)}, for {_arrows(lens.seen)}; "
        "colored by length in nats. On the dashed line E(x,y) = E(x) the cross-entropy is 0; above it, the vertical "
        "distance is the loss. Outliers beyond the 0.5 % quantiles leave the panel. "
        f"{lens.protocol_text(lens.seen)}",
        drift.drift(lens.seen),
        drift.drift_lines(lens.seen),
    )


def _drift_over_epochs(lens: Lens, name: str, group: Sequence[Seen]) -> Plate:
    return Plate(
        f"drift-{file_name(name)}",
        f"The same through training: {name}",
        f"Arrows as above under {_main_attack(group)}, {_arrows(group)} of {len(group)} stored epochs, at most nine of "
        f"them shown; all panels share axes and colors. figures/drift-{file_name(name)}.gif has a frame an epoch. "
        f"{lens.protocol_text(group[-1:])}",
        drift.drift_over_epochs(group),
        drift.drift_lines(group),
    )


def _training(lens: Lens) -> Plate:
    networks = [one.network for one in lens.seen]
    return Plate(
        "training",
        "ΔE(x) and robust error during training",
        "Top: mean ΔE(x) = E(x) − E(x*) on fixed training images under PGD-10 at each run's training ε (symmetric "
        "logarithm beyond ±1 where values demand it). Bottom: error on held-out images under PGD-10 at the evaluation "
        "ε of the runs. Markers: onset of overfitting (filled: confirmed), and where the second and third phase begin "
        "in runs of 30 epochs and more. From the records of the runs.",
        training.energy_and_error(networks),
        training.training_lines(networks),
        _NO_RUN,
    )


def _abnormal(lens: Lens) -> Plate:
    networks = [one.network for one in lens.seen]
    return Plate(
        "abnormal",
        "Abnormal adversarial examples during training",
        "Fixed training images whose cross-entropy the run's own training attack lowers: their share; how many of them "
        "have E(x*) above the 90 % quantile of E(x) of all; and their mean energy, where there are any. From the "
        "records of the runs.",
        training.abnormal_examples(networks),
        training.abnormal_lines(networks),
        _NO_RUN,
    )


def _delta_energy(lens: Lens) -> Plate:
    return Plate(
        "delta_energy",
        "How far the energies move, from the least to the most robust network",
        f"Distributions of ΔE(x) and ΔE(x,y) under {_main_attack(lens.seen)}, natural minus adversarial, with median "
        "and quartiles, on an axis that is linear within ±0.1 and logarithmic beyond, without the outermost 0.5 % at "
        f"either end. {rank_text(lens.seen)} {lens.protocol_text(lens.seen)}",
        smoothness.delta_energy_distributions(lens.seen),
        smoothness.smoothness_lines(lens.seen),
    )


def _classes(lens: Lens) -> Plate:
    return Plate(
        "classes",
        "Energy, entropy and error by class",
        "Means over the natural images of a class; 1 − p_y is the probabilistic error, robust error the share of "
        "images that some attack of this lens fools or that were wrong before. At most four networks. "
        f"{lens.protocol_text(lens.seen)}",
        classes.class_profile(lens.seen),
        classes.class_lines(lens.seen),
    )


def _margin(lens: Lens) -> Plate:
    return Plate(
        "margin",
        "Probabilistic margin against energy",
        f"Margin p_y − max p_k at x* under {_main_attack(lens.seen)} over both energies of x*; crosses are "
        "misclassified. r: Pearson, ρ: Spearman, over all images. "
        f"{lens.protocol_text(lens.seen)}",
        classes.margin_against_energy(lens.seen),
        classes.margin_lines(lens.seen),
    )


def tables(lens: Lens) -> dict[str, list[CsvRow]]:
    """Tables that no figure has."""
    return {
        "class_correlations": classes.class_correlation_lines(lens.seen),
        "rank_correlations": [asdict(one) for one in smoothness.rank_correlations(lens.seen)],
    }


def sample_columns(lens: Lens) -> dict[str, Array]:
    """Column -> one value per network, attack and image: what every figure of the networks is drawn from.

    `image` is where the image lies in the whole test set.
    """
    names, stages, images, columns = [], [], [], []
    test = catalog.DATASETS[lens.seen[0].network.subject.experiment.data.name].num_test
    for one in lens.seen:
        for stage, points in {"clean": one.natural, **one.attacked}.items():
            names += [one.name] * len(points)
            stages += [stage] * len(points)
            images.append(subset_indices(test, len(points)))
            columns.append(points)
    scalars = [field.name for field in fields(columns[0]) if not field.name.startswith("step_")]
    return {
        "network": np.array(names),
        "attack": np.array(stages),
        "image": np.concatenate(images),
        **{name: np.concatenate([getattr(points, name) for points in columns]) for name in scalars},
    }


def followed(lens: Lens) -> dict[str, list[Seen]]:
    """The stored epochs of each run, in order."""
    groups: dict[str, list[Seen]] = {}
    for one in lens.epochs:
        groups.setdefault(one.name, []).append(one)
    return groups


def _main_attack(seen: Sequence[Seen]) -> str:
    return label(main_stage(seen))


def _arrows(seen: Sequence[Seen]) -> str:
    count = len(seen[0].natural)
    shown = len(drift.shown_images(count))
    return f"all {count} images" if shown == count else f"{shown} of {count} images, spread evenly"


def _left_out(one: Seen) -> str:
    still = [label(stage) for stage, points in one.attacked.items() if not points.moved.all()]
    if not still:
        return ""
    names = ", ".join(still)
    return f" Adversarial images that equal the natural one are left out ({names}); tables count them, with ΔE = 0."


def rank_text(seen: Sequence[Seen]) -> str:
    """What a caption says of the rank correlations of ΔE(x)."""
    found = smoothness.rank_correlations(seen)
    if not found:
        return "A rank correlation needs three networks."
    words = {
        "delta_energy_absolute_mean": "|mean|",
        "delta_energy_std": "standard deviation",
        "delta_energy_small_share": "share below 0.1",
    }
    parts = [f"{words[one.quantity]} {one.spearman:+.2f}" for one in found if one.quantity in words]
    return f"Spearman of robust accuracy with ΔE(x)'s {', '.join(parts)} (n = {len(seen)} networks)."


def _who(network: Network) -> str:
    subject = network.subject
    if subject.foreign is not None or subject.epoch is None:
        return subject.source
    epoch = f"epoch {subject.epoch + 1}"  # as people count
    chosen = f"{subject.checkpoint} checkpoint ({epoch})" if subject.checkpoint else epoch
    return f"{chosen}, {subject.experiment_digest}"
