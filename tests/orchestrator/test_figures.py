"""The figures of a report on a small made-up study: what each shows, and that it is the same whoever draws it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.pages.style import to_svg
from orchestrator.records.runs import Run
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import open_study_folder
from orchestrator.report import figures
from orchestrator.report.curves import training_phases
from orchestrator.report.figure_data import energy_curve_lines
from orchestrator.report.held_out import held_out_points
from orchestrator.report.importance import parameter_importances
from tests.orchestrator.made_up import EPOCHS, lengthened, made_up_study, record, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[Run]:
    return open_study_folder(folder).runs()


def test_energy_data_follow_the_records(runs: list[Run]) -> None:
    lines = [line for line in energy_curve_lines(runs) if line["trial"] == 0]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert [line["epoch"] for line in lines if line["onset"]] == [6]
    assert lines[5]["delta_energy_mean"] == 3.0
    assert lines[5]["robust_accuracy"] == 0.02


def test_energy_figure_has_a_line_a_trial_and_a_marker_an_onset(runs: list[Run]) -> None:
    figure = figures.energy_curves(made_up_study(), runs)
    assert isinstance(figure, Figure)
    top, bottom = figure.axes
    assert top.get_yscale() == "symlog"
    for axes in (top, bottom):
        drawn = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert len(drawn) == 5
        assert [tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "X"] == [(6,)]
    assert "ε = 8/255" in bottom.get_ylabel()


def test_many_trials_get_a_column_a_method(runs: list[Run]) -> None:
    tried = [run for run in runs if run.kind == "trial"] * 3
    many = [replace(run, trial=number) for number, run in enumerate(tried)]
    figure = figures.energy_curves(made_up_study(), many)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["FGSM", "FGSM + DER", "WEAT-ADV"]


def test_lines_of_more_methods_than_colors_differ_by_their_markers(runs: list[Run]) -> None:
    presets = ("fgsm", "sat", "trades", "mart", "mail_at", "weat_nat", "weat_adv", "n_fgsm", "grad_align", "aaer")
    study = made_up_study()
    many = [
        replace(runs[0], trial=place, experiment=study.experiment_for({"method.name": name}))
        for place, name in enumerate(presets)
    ]
    figure = figures.energy_curves(study, many)
    assert figure is not None
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) == EPOCHS]
    assert len({(line.get_color(), line.get_marker()) for line in curves}) == len(presets)
    (legend,) = figure.legends
    shown = {(line.get_color(), line.get_marker()) for line in legend.get_lines()}
    assert shown >= {(line.get_color(), line.get_marker()) for line in curves}


def test_a_method_has_one_color_in_all_figures_whatever_each_shows(runs: list[Run]) -> None:
    """Trials without a result are in the curves and not among the points: that must not shift the others' colors."""
    study = made_up_study()
    presets = ("grad_align", "mart", "trades", "weat_nat")
    ran = [
        replace(runs[2], trial=t, experiment=study.experiment_for({"method.name": n, "attack.epsilon": f"{t + 4}/255"}))
        for t, n in enumerate(presets)
    ]
    ran[0] = replace(ran[0], state="running", objectives=())
    points = held_out_points(study, ran)
    drawn = [
        figures.energy_curves(study, ran),
        figures.pareto_front(ran, points),
        figures.accuracy_over_epsilon(study, ran, points),
    ]
    seen: dict[str, set[object]] = {}
    for figure in drawn:
        assert figure is not None
        for handle in figure.legends[0].legend_handles:
            assert isinstance(handle, Line2D)
            seen.setdefault(str(handle.get_label()), set()).add(handle.get_color())
    assert {len(seen[name]) for name in ("GradAlign", "MART", "TRADES", "WEAT-NAT")} == {1}


def test_accuracy_over_epsilon_joins_means(runs: list[Run]) -> None:
    assert figures.mean_over_epsilon(held_out_points(made_up_study(), runs)) == {
        8 / 255: pytest.approx((0.42 + 0.41) / 2),
        16 / 255: pytest.approx((0.38 + 0.45) / 2),
    }
    study = made_up_study()
    one_epsilon = [run for run in runs if run.experiment.attack.epsilon.text == "8/255"]
    assert figures.accuracy_over_epsilon(study, one_epsilon, held_out_points(study, one_epsilon)) is None


def test_importances_are_shares_and_a_database_that_is_not_there_is_not_made(folder: Path, tmp_path: Path) -> None:
    found = parameter_importances(made_up_study(), storage_url(made_up_study(), folder.absolute()))
    assert set(found) == {"val/clean_accuracy", "val/pgd10_accuracy"}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in found.values())
    assert parameter_importances(made_up_study(), f"sqlite:///{tmp_path}/none.db") == {}
    assert not (tmp_path / "none.db").exists()


def stored_study(url: str, complete: int, failed: int = 0) -> None:
    """Trials of which `attack.epsilon` makes the objectives, `width` nothing, and `depth` is the same in all."""
    study = optuna.create_study(study_name=made_up_study().name, storage=url, directions=["maximize"] * 2)
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("width", "attack.epsilon")}
    distributions |= {"depth": optuna.distributions.IntDistribution(1, 9)}
    for number in range(complete + failed):
        epsilon = number / (complete + failed)
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if number < complete else optuna.trial.TrialState.FAIL,
                params={"width": number * 7 % 10 / 10, "attack.epsilon": epsilon, "depth": 3},
                distributions=distributions,
                values=[1 - epsilon, epsilon] if number < complete else None,
            )
        )


def test_what_sets_the_best_trials_apart_is_most_important_and_what_never_varied_is_not_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/many.db"
    stored_study(url, complete=30)
    for shares in parameter_importances(made_up_study(), url).values():
        assert list(shares) == ["attack.epsilon", "width"]
        assert shares["attack.epsilon"] > 0.8


@pytest.mark.parametrize(("complete", "failed", "told"), [(4, 0, True), (3, 0, False), (3, 2, False)])
def test_importances_are_told_of_four_complete_trials_on(
    complete: int, failed: int, told: bool, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/few.db"
    stored_study(url, complete, failed)
    assert bool(parameter_importances(made_up_study(), url)) == told


def test_one_run_is_drawn_for_tracking(runs: list[Run]) -> None:
    figure = figures.run_energies(runs[0])
    assert [axes.get_ylabel() for axes in figure.axes] == ["mean energy [nats]", r"$\Delta E(x)$ [nats]"]
    assert figures.run_energies(runs[5]) is None


def test_the_phases_of_a_long_run_are_drawn_and_those_of_a_short_one_or_of_a_collapse_are_not(runs: list[Run]) -> None:
    def marked(run: Run) -> dict[str, float]:
        return {text.get_text(): text.xy[0] for text in figures.run_energies(run).axes[1].texts}

    curve = [*(-0.1 * epoch for epoch in range(8)), *[-0.7] * 14, *(-0.7 - 0.2 * epoch for epoch in range(1, 9))]
    long = lengthened(runs[1], curve)
    found = training_phases(long)
    assert marked(long) == {"phase 2": found.first_break + 1, "phase 3": found.second_break + 1}
    assert (found.first_break, found.second_break) == pytest.approx((8, 22), abs=1)
    assert marked(lengthened(runs[1], curve[:29])) == {}
    fallen = tuple(record(epoch, 20, 0.2) for epoch in range(31))
    assert marked(replace(runs[1], records=fallen)) == {"catastrophic overfitting": 21}


def test_svg_is_the_same_twice_and_undated(runs: list[Run]) -> None:
    first, second = (to_svg(figures.run_energies(runs[0]), "one") for _ in range(2))
    assert first == second
    assert "<metadata>" not in first
    assert "<text" not in first


def test_threads_that_draw_at_once_get_the_same(runs: list[Run]) -> None:
    points = held_out_points(made_up_study(), runs)

    def draw(name: str) -> str:
        return to_svg(figures.pareto_front(runs, points), name)

    with ThreadPoolExecutor(2) as threads:
        first, other, again = threads.map(draw, ["one", "two", "one"])
    assert first == again == draw("one")
    assert first != other
