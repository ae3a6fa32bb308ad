"""Figures with names of the user's own: nothing leaves the figure, runs into its neighbor, or is missing."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from orchestrator.generation.figures import energies, mosaic
from orchestrator.generation.making import Made
from orchestrator.lens.classes import class_profile, margin_against_energy
from orchestrator.lens.drift import drift
from orchestrator.lens.networks import Network
from orchestrator.lens.seen import Seen
from orchestrator.lens.smoothness import delta_energy_distributions
from orchestrator.lens.steps import energy_over_steps
from orchestrator.lens.training import abnormal_examples, energy_and_error
from orchestrator.pages.lettering import lettered
from orchestrator.pages.markup import inline_svg
from orchestrator.pages.style import new_figure, to_svg
from orchestrator.report.figures import delta_energy_axis
from trainers.lens.points import Points
from trainers.records import EpochRecord

NAMES = [
    "SAT, the baseline with a long name", "_aaer", "cost $5 or $6", "WEAT with KL in two steps", "FGSM + DER, other",
    "A network whose name goes on and on, longer than any figure is wide, as those of sweeps may be, with all settings",
    "TRADES", "MART from somebody else",
]  # fmt: skip


def made_up(name, seed):
    source = np.random.default_rng(seed)
    labels = np.arange(40) % 4

    def points(steps):
        energy = source.normal(-3, 1, 40)
        return Points(
            labels=labels, energy=energy, joint_energy=energy + source.random(40), entropy=source.random(40),
            true_probability=source.random(40), margin=source.uniform(-1, 1, 40), correct=source.random(40) < 0.5,
            moved=np.ones(40, bool), step_energy=source.normal(size=(40, steps)),
            step_joint_energy=source.normal(size=(40, steps)),
        )  # fmt: skip

    return Seen(Network(name, SimpleNamespace()), points(0), {"pgd20": points(21)})


@pytest.fixture
def seen():
    return [made_up(name, place) for place, name in enumerate(NAMES)]


@pytest.fixture
def networks(experiment):
    metrics = {
        "probe_reference/delta_energy/mean": 0.1, "val/pgd10_accuracy": 0.3, "probe/abnormal_fraction": 0.2,
        "probe/high_energy_abnormal_count/quantile": 1.0, "probe/abnormal_energy/mean": -2.0,
    }  # fmt: skip
    records = tuple(EpochRecord(epoch, 0.0, metrics) for epoch in range(3))
    run = SimpleNamespace(records=records, experiment=experiment({}), folder="nowhere")
    return [Network(name, SimpleNamespace(), run) for name in NAMES]


def made_images(name, init):
    lines = np.zeros((6, 4))
    return Made(
        name,
        init,
        np.zeros((4, 8, 8, 1), np.uint8),
        np.arange(4),
        np.full(4, 5),
        lines,
        lines + 1,
        np.zeros(4),
        1.0,
        "",
        (),
    )


def texts(figure):
    """(text, box in pixels) of every text of a legend, a title or an axis below, where the layout puts it."""
    FigureCanvasAgg(figure).draw()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    titles = [title for axes in shown for title in (axes.title, axes._left_title, axes._right_title)]
    ticks = [
        tick for axes in shown for tick in axes.get_xticklabels()
        if axes.get_xlim()[0] <= tick.get_position()[0] <= axes.get_xlim()[1]
    ]  # fmt: skip
    return [(text.get_text(), text.get_window_extent()) for text in [*legends, *titles, *ticks] if text.get_text()]


def check_inside(figure):
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in texts(figure):
        assert box.x0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text


def check_apart(found):
    """No two of these texts cover each other."""
    for place, (text, box) in enumerate(found):
        for other, its in found[place + 1 :]:
            assert not (box.x0 < its.x1 and its.x0 < box.x1 and box.y0 < its.y1 and its.y0 < box.y1), (text, other)


def in_legend(figure):
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return {name.replace("\n", " ").replace(r"\$", "$") for name in names}


def test_legends_of_many_long_names_stay_inside_and_name_every_network(seen, networks):
    for figure in (energy_over_steps(seen), energy_and_error(networks), abnormal_examples(networks)):
        check_inside(figure)
        assert in_legend(figure) >= set(NAMES)


@pytest.mark.parametrize("draw", [drift, class_profile, margin_against_energy, delta_energy_distributions])
def test_titles_and_ticks_of_long_names_stay_inside_and_apart(draw, seen):
    for some in (seen, seen[-3:-2], seen[:2]):
        figure = draw(some)
        check_inside(figure)
        check_apart(texts(figure))


def test_panels_of_generated_energies_keep_their_titles_apart():
    figure = energies([made_images(name, init) for name in NAMES[:3] for init in ("pca", "local_pca")])
    check_inside(figure)
    titles = [axes.title for axes in figure.axes if axes.get_title()]
    FigureCanvasAgg(figure).draw()
    boxes = [title.get_window_extent() for title in titles]
    assert all(left.x1 <= right.x0 or right.y1 <= left.y0 for left, right in pairwise(boxes))


def test_a_short_name_stays_on_one_line_and_dollars_are_no_formula():
    assert lettered("FGSM + DER", 24) == "FGSM + DER"
    assert lettered("cost $5 or $6", 24) == r"cost \$5 or \$6"
    assert lettered("abcdefgh", 3) == "abc\ndef\ngh"


@pytest.mark.parametrize("largest", [4.0, 60.0, 3e4, 2e9, 1e20])
def test_an_axis_of_delta_energies_has_ticks_up_to_its_end_and_they_stay_apart(largest):
    figure = new_figure(4.9)
    top, _ = figure.subplots(2, 1)
    top.plot([0, 1, 2], [-0.2, 0.5, largest])
    delta_energy_axis(top, [-0.2, 0.5, largest])
    FigureCanvasAgg(figure).draw()
    low, high = top.get_ylim()
    ticks = [tick for tick in top.get_yticklabels() if low <= tick.get_position()[1] <= high]
    check_apart([(tick.get_text(), tick.get_window_extent()) for tick in ticks])
    assert max(tick.get_position()[1] for tick in ticks) >= largest / 1000


def test_a_narrow_figure_is_not_blown_up_to_the_width_of_the_page():
    widths = []
    for inches in (2.75, 5.5):
        markup = inline_svg(to_svg(new_figure(2, inches), "name"), "name", "what it shows")
        widths.append(int(markup.partition("max-width: ")[2].partition("px")[0]))
    assert widths[1] == pytest.approx(736, abs=4)  # 46rem, the column of figures
    assert widths[0] == pytest.approx(widths[1] / 2, abs=1)


def test_few_images_of_many_classes_are_no_page_of_many_screens():
    few = Made(
        "net", "pca", np.zeros((10, 32, 32, 3), np.uint8), np.arange(10), np.full(10, 5), *[np.zeros((6, 10))] * 2,
        np.zeros(10), 1.0, "", (),
    )  # fmt: skip
    assert mosaic(few).get_size_inches()[1] < 8
