"""What a lens writes: figures with their data, captions, ranks, names and colors."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from orchestrator.evaluation.subjects import Foreign
from orchestrator.exit_codes import OK
from orchestrator.lens.networks import choose_networks
from orchestrator.lens.plates import rank_text
from orchestrator.lens.seen import Seen
from orchestrator.lens.smoothness import rank_correlations
from orchestrator.lens.training import abnormal_lines, energy_and_error, training_lines
from orchestrator.pages.style import method_colors
from orchestrator.tracking import server
from tests.orchestrator.lens.conftest import ENERGY, QUICK, ROBUST, lines
from trainers.data.images import load_splits
from trainers.evaluation.ranges import fixed_subset
from trainers.lens.points import Points


def test_every_figure_is_written_with_its_data_and_numbers_are_those_of_the_points(
    runs, lens, tmp_path, natural_net, experiment
):
    quick = [word for word in QUICK if word != "--no-track"]
    code, printed, _ = lens(f"net={runs / 'a'}", runs / "b", "--data", "digits", *quick)
    assert code == OK
    figures = tmp_path / "lens" / "figures"
    drawn = {"distributions-net", "distributions-trades", "energy_over_steps", "drift", "training", "abnormal"}
    drawn |= {"delta_energy", "classes", "margin"}
    for kind in ("svg", "png", "csv", "parquet", "txt"):
        assert {file.stem for file in figures.glob(f"*.{kind}")} >= drawn
    page = (tmp_path / "lens" / "lens.html").read_text()
    assert page.count("<svg") == len(drawn)
    assert "digits 8x8/test n=24" in page
    for name in drawn - {"training", "abnormal"}:
        assert "24 test images of digits 8x8, L∞ attacks with ε = 0.06" in (figures / f"{name}.txt").read_text()

    images = fixed_subset(load_splits(experiment().data).test, 24)
    with torch.no_grad():
        moved = copy.deepcopy(natural_net)
        moved.network[-1].bias += 0.2
        energy = -moved(images.floats()).logsumexp(1)
    table = pyarrow.parquet.read_table(figures / "samples.parquet").to_pandas()
    own = table[(table.network == "net") & (table.attack == "clean")]
    assert np.allclose(own.energy, energy, atol=1e-5)
    whole = load_splits(experiment().data).test  # `image` is the place in the whole test set
    assert np.array_equal(own.labels, whole.labels[own.image.to_numpy()])
    with torch.no_grad():
        assert np.allclose(own.energy, -moved(whole.floats())[own.image.to_numpy()].logsumexp(1), atol=1e-5)
    assert len(table) == 2 * 3 * 24
    attacked = table[(table.network == "net") & (table.attack == "pgd20")]
    stands = own.correct.to_numpy() & attacked.correct.to_numpy()
    row = next(line for line in lines(figures / "distributions-net.csv") if line["attack"] == "pgd20")
    assert float(row["robust_accuracy"]) == stands.mean()
    change = own.energy.to_numpy(np.float64) - attacked.energy.to_numpy(np.float64)
    assert float(row["delta_energy_mean"]) == pytest.approx(change.mean())
    assert f"{100 * stands.mean():.1f}" in printed
    last = [line for line in lines(figures / "energy_over_steps.csv") if line["network"] == "net"][-1]
    assert (last["step"], float(last["energy_mean"])) == ("20", pytest.approx(attacked.energy.mean(), rel=1e-5))
    robust = [float(line["robust_accuracy"]) for line in lines(figures / "delta_energy.csv")]
    assert robust == sorted(robust)
    client = MlflowClient(tracking_uri=server.uri_of_no_study())
    (run,) = client.search_runs([client.get_experiment_by_name("adversarial-training").experiment_id])
    assert run.data.metrics["net/pgd20/robust_accuracy"] == stands.mean()
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"figures", "lens.html"}


def test_stored_epochs_become_panels_and_frames_and_old_figures_go(runs, lens, tmp_path):
    assert lens(f"net={runs / 'a'}", "--epochs", "1,3", *QUICK)[0] == OK
    figures = tmp_path / "lens" / "figures"
    found = lines(figures / "drift-net.csv")
    assert [(line["epoch"], line["attack"]) for line in found] == [("1", "pgd20"), ("3", "pgd20")]
    # The last epoch is also the best: its weights are measured once.
    assert found[1]["energy_mean"] == lines(figures / "drift.csv")[0]["energy_mean"]
    assert len(list((tmp_path / "lens" / "points").glob("*.npz"))) == 3 * 3 + 3 * 2
    assert Image.open(figures / "drift-net.gif").n_frames == 2
    assert (figures / "drift-net.svg").exists()
    # What another selection of networks left behind would contradict the page.
    assert (figures / "training.svg").exists()
    assert lens(runs / "b" / "checkpoints" / "best", *QUICK, "--attack", "kl20")[0] == OK
    assert not (figures / "training.svg").exists()
    assert not (figures / "energy_over_steps.csv").exists()
    assert not list(figures.glob("*-net.*"))
    assert "PGD-20 is not among the attacks" in (tmp_path / "lens" / "lens.html").read_text()


def test_captions_count_epochs_from_1(runs, lens, tmp_path):
    code, *_ = lens(f"A={runs / 'a' / 'checkpoints' / 'epoch_0001'}", f"B={runs / 'b'}", *QUICK, "--epochs", "1,3")
    assert code == OK
    caption = (tmp_path / "lens" / "figures" / "drift.txt").read_text()
    assert "A = epoch 2, " in caption
    assert "B = best checkpoint (epoch 3), " in caption
    assert "B = epoch 3, " in (tmp_path / "lens" / "figures" / "drift-b.txt").read_text()


def test_names_are_printed_and_found_as_they_are_written(runs, lens):
    words = [f"SAT [eps=8]={runs / 'a'}", f"[red]net[/x] :smile:={runs / 'b'}"]
    code, printed, error = lens(*words, *QUICK)
    assert (code, error) == (OK, "")
    assert "\nSAT [eps=8] " in printed
    assert "\n[red]net[/x] :smile: " in printed


def test_records_of_runs_are_read_with_onsets_and_gaps(runs):
    networks = choose_networks(
        [f"net={runs / 'a'}", str(runs / "b")], checkpoint=None, foreign=Foreign(), data_dir=None
    )
    found = training_lines(networks)
    assert [line["network"] for line in found] == ["net"] * len(ROBUST)
    assert [line["robust_error"] for line in found] == pytest.approx([1 - value for value in ROBUST])
    assert [line["delta_energy_mean"] for line in found] == ENERGY
    assert [line["epoch"] for line in found if line["onset"] == "catastrophic"] == [6]
    abnormal = abnormal_lines(networks)
    assert [line["probe/abnormal_energy/mean"] for line in abnormal] == [-3.0, -3.0, "", -3.0, -3.0, -3.0, -3.0]


def test_robust_accuracy_is_ranked_against_how_far_both_energies_move():
    """The more robust of these move less in E(x) and more in E(x,y)."""

    def points(energy, joint_energy, right):
        image = np.arange(10)
        return Points(
            image, energy, joint_energy, *[np.zeros(10)] * 3, image < right, np.ones(10, bool), *[np.zeros((10, 0))] * 2
        )

    still, moving = np.zeros(10), np.arange(10.0)
    networks = [
        Seen(SimpleNamespace(name=str(right)), points(still, still, 10),
             {"pgd20": points((10 - right) * moving, right * moving, right)})
        for right in (6, 2, 4)
    ]  # fmt: skip
    assert rank_correlations(networks[:2]) == []
    found = {one.quantity: one.spearman for one in rank_correlations(networks)}
    assert [one.networks for one in rank_correlations(networks)] == [3] * 6
    assert found["delta_energy_std"] == found["delta_energy_absolute_mean"] == pytest.approx(-1)
    assert found["delta_joint_energy_std"] == found["delta_joint_energy_absolute_mean"] == pytest.approx(1)
    assert "Spearman of robust accuracy with ΔE(x)'s |mean| -1.00, standard deviation -1.00, " in rank_text(networks)


def test_a_network_keeps_its_color_beside_others_that_have_no_records(runs):
    (foreign,) = choose_networks([str(runs / "b")], checkpoint=None, foreign=Foreign(), data_dir=None)
    (trained,) = choose_networks([f"net={runs / 'a'}"], checkpoint=None, foreign=Foreign(), data_dir=None)
    figure = energy_and_error([replace(foreign, name="first", run=None), trained])
    assert figure.legends[0].legend_handles[0].get_color() == method_colors(["first", "net"])["net"]
