"""What was generated, to look at: a mosaic of the images and the energies along the chains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from orchestrator.generation.making import Array, Made
from orchestrator.lens.seen import panels
from orchestrator.pages.csv_rows import CsvRow
from orchestrator.pages.lettering import legend_outside, lettered
from orchestrator.pages.style import ADVERSARIAL_COLOR, INK, NATURAL_COLOR, new_figure, styled

SHOWN = 12
_GAP = 1
_LARGEST = 0.6
_TITLE_CHARACTERS = 26


@styled
def mosaic(made: Made) -> Figure:
    """A row a class, the first images of each."""
    classes = np.unique(made.labels)
    columns = min(SHOWN, int(np.bincount(made.labels).max()))
    rows = [_row(made.images[made.labels == label][:columns], columns) for label in classes]
    picture = np.concatenate(rows)
    height, width = picture.shape[:2]
    # Few images of a class are not blown up: ten classes of one image each would be a page of ten screens.
    across = min(4.2, _LARGEST * columns)
    figure = new_figure(across * height / width + 0.2, across + 0.4)
    axes = figure.subplots()
    axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
    side = made.images.shape[1] + _GAP
    axes.set_yticks([side * (place + 0.5) for place in range(len(classes))], [str(label) for label in classes])
    axes.set(ylabel="class", xticks=[])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


@styled
def energies(made: Sequence[Made]) -> Figure:
    """A panel a network and init: the class's joint energy falls towards the training images', the others' rise."""
    figure, grid = panels(len(made), 2.2)
    for place, (axes, one) in enumerate(zip(grid, made, strict=True)):
        present = np.unique(one.labels)
        for energy, color, name in (
            (one.target_energy, NATURAL_COLOR, "E(x, y) of the class"),
            (one.other_energy, ADVERSARIAL_COLOR, "of the other classes"),
        ):
            axes.plot(energy[:, present], color=color, linewidth=0.5, alpha=0.35)
            axes.plot(energy[:, present].mean(1), color=color, label=name, linewidth=2)
        mean = float(one.class_energy[present].mean())
        axes.axhline(mean, color=INK, linestyle=(0, (4, 2)), linewidth=1, label="training images of the class")
        axes.set(title=f"{lettered(one.network, _TITLE_CHARACTERS)}\n{one.init}", xlabel="step")
        if place % 3 == 0:
            axes.set_ylabel("joint energy [nats]")
    legend_outside(figure, *grid[0].get_legend_handles_labels(), most=3, place="lower")
    return figure


def energy_lines(made: Sequence[Made]) -> list[CsvRow]:
    """A line a network, init, class and step."""
    return [
        {
            "network": one.network, "init": one.init, "class": int(label), "step": step,
            "target_energy": float(one.target_energy[step, label]),
            "other_energy": float(one.other_energy[step, label]),
            "training_energy": float(one.class_energy[label]),
        }
        for one in made
        for label in np.unique(one.labels)
        for step in range(len(one.target_energy))
    ]  # fmt: skip


def _row(images: Array, columns: int) -> Array:
    """Side by side, white where there are fewer, white lines between."""
    padding = ((0, columns - len(images)), (0, _GAP), (0, _GAP), (0, 0))
    result: Array = np.concatenate(np.pad(images, padding, constant_values=255), axis=1)
    return result
