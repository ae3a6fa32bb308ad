"""What the lens saw of one network, and how its panels and colors are laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.lens.networks import Network
from orchestrator.pages.style import new_figure
from trainers.catalog.attacks import STAGES
from trainers.lens.points import Array, Points, point_delta_energies, standing
from trainers.problems import InvalidInput, Problem

COLUMNS = 3


@dataclass(frozen=True)
class Seen:
    """One network's answers to the images themselves and to each attack (one or more), by the name of its stage."""

    network: Network
    natural: Points
    attacked: Mapping[str, Points]

    @property
    def name(self) -> str:
        """The network's."""
        return self.network.name

    def robust_accuracy(self, stage: str) -> float:
        """Share of images that are classified correctly before and after this attack."""
        return float(standing(self.natural, self.attacked[stage]).mean())

    def deltas(self, stage: str) -> tuple[Array, Array]:
        """(ΔE(x), ΔE(x,y)) [N] each, natural minus adversarial."""
        return point_delta_energies(self.natural, self.attacked[stage])


def check_finite(seen: Sequence[Seen]) -> None:
    """Raise InvalidInput naming each network with logits that are not finite: means and axes would lose their sense."""
    problems = []
    for one in seen:
        points = {"no attack": one.natural, **{label(stage): at for stage, at in one.attacked.items()}}
        finite = {attack: np.isfinite(at.energy) & np.isfinite(at.joint_energy) for attack, at in points.items()}
        found = [f"{(~good).sum()} (under {attack})" for attack, good in finite.items() if not good.all()]
        if found:
            epoch = "" if one.network.epoch is None else f", epoch {one.network.epoch + 1}"
            message = f"has energies that are not finite at {', '.join(found)} of {len(one.natural)} images: "
            problems.append(Problem(f"{one.name}{epoch}", message + "leave it out; what is measured of others stays"))
    if problems:
        raise InvalidInput(problems)


def main_stage(seen: Sequence[Seen]) -> str:
    """The attack of the figures that show one: PGD-20, or else the first."""
    stages = list(seen[0].attacked)
    return "pgd20" if "pgd20" in stages else stages[0]


def label(stage: str) -> str:
    """An attack as papers write it."""
    return STAGES[stage].label


def panels(count: int, height: float, width: float = 2.3) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of `count` panels, at most `COLUMNS` beside each other; sizes in inches of one panel."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(height * rows, max(width * columns, 3.4))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in grid[count:]:
        unused.set_visible(False)
    return figure, list(grid[:count])
