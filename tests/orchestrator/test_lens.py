"""`orchestrator lens` and `orchestrator subsets` through the command line, on nets and records made in the test."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

from orchestrator.cli import main
from orchestrator.evaluation.subjects import Foreign
from orchestrator.evaluation.verb import settings_of
from orchestrator.exit_codes import BAD_INPUT, INTERRUPTED, OK
from orchestrator.lens import measuring
from orchestrator.lens.networks import choose_networks
from orchestrator.lens.plates import rank_text
from orchestrator.lens.seen import Seen
from orchestrator.lens.smoothness import rank_correlations
from orchestrator.lens.training import abnormal_lines, energy_and_error, training_lines
from orchestrator.lens.verb import lens_protocol
from orchestrator.pages.style import method_colors
from orchestrator.tracking import server
from tests.orchestrator.curves import records
from trainers import checkpoint
from trainers.data.images import load_splits, training_indices
from trainers.evaluation.ranges import fixed_subset
from trainers.lens import measure as lens_measure
from trainers.lens.points import Points
from trainers.records import EpochRecord, append_record

QUICK = ("--attack", "pgd20,kl20", "-n", "24", "--shard", "10", "--batch-size", "10", "--epsilon", "0.06", "--no-track")
ROBUST = [0.2, 0.3, 0.4, 0.5, 0.5, 0.05, 0.02]
ENERGY = [-0.1, -0.1, -0.1, -0.1, -0.1, 4.0, 6.0]


@pytest.fixture(scope="module")
def runs(natural_net, experiment, tmp_path_factory):
    """Two run folders, `a` with the net and `b` with a coarser one, and the records of a collapse in `a`."""
    root = tmp_path_factory.mktemp("runs")
    coarse = copy.deepcopy(natural_net)
    with torch.no_grad():
        coarse.network[-1].weight *= 0.3
    for name, net, values in (("a", natural_net, {}), ("b", coarse, {"method.name": "trades"})):
        settings = experiment({"model.width": 8, "keep_every": 1, **values})
        for epoch in range(3):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                moved.network[-1].bias += 0.1 * epoch
            saved = checkpoint.save(root / name, settings, moved, {}, EpochRecord(epoch, 0.0, {}))
        checkpoint.mark_best(root / name, saved)
    for record in records(ROBUST, ENERGY):
        abnormal = {"probe/abnormal_fraction": 0.25, "probe/high_energy_abnormal_count/quantile": 2.0}
        mean = {"probe/abnormal_energy/mean": -3.0} if record.epoch != 2 else {}
        append_record(root / "a", EpochRecord(record.epoch, record.time, {**record.metrics, **abnormal, **mean}))
    return root


@pytest.fixture
def lens(capsys, tmp_path, monkeypatch):
    """`lens(*words)` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words, verb="lens"):
        code = main([verb, *map(str, words)])
        return code, *capsys.readouterr()

    return called


def lines(file):
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def equal(left, right):
    return all(np.array_equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(Points))


@pytest.fixture
def counted(monkeypatch):
    """A list that grows by one whenever a range is measured."""
    calls, original = [], lens_measure.measure_range

    def called(*arguments):
        calls.append(arguments[2].attack)
        return original(*arguments)

    monkeypatch.setattr(lens_measure, "measure_range", called)
    return calls


@pytest.fixture
def measured(runs, tmp_path, monkeypatch):
    """`measured("a")`: what one pass finds of a run, or of foreign weights, with the settings of QUICK."""
    monkeypatch.chdir(tmp_path)

    def called(word, foreign=None, *, output="lens", seed=0, epsilon="0.06", address=None):
        word = str(runs / word) if (runs / word).is_dir() else word
        (network,) = choose_networks([word], checkpoint=None, foreign=foreign or Foreign(), data_dir=None)
        settings = settings_of(attack="pgd20,kl20", samples=24, seed=seed, shard=10, batch_size=10)
        wanted = [(network, ("clean", "pgd20", "kl20"))]
        protocol = lens_protocol([network], settings, epsilon)
        (found,) = measuring.measure(
            wanted, protocol, tmp_path / output, address=address, threads=1, console=Console(quiet=True)
        )
        return found.points

    return called


@pytest.fixture
def foreign(runs, tmp_path):
    """(file, options): the weights of the run `b` as somebody else would have saved them."""
    net = checkpoint.load(runs / "b" / "checkpoints" / "best").load_model()
    torch.save(net.network.state_dict(), tmp_path / "theirs.pt")
    return tmp_path / "theirs.pt", Foreign("small", ("width=8",), "digits:8", "none")


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


def test_a_second_call_measures_nothing_and_a_lost_range_alone_is_measured_again(measured, counted, tmp_path):
    whole = measured("a")
    assert len(counted) == 3 * 3
    again = measured("a")
    assert len(counted) == 3 * 3
    assert all(equal(again[stage], whole[stage]) for stage in whole)
    sorted((tmp_path / "lens" / "points").iterdir())[0].unlink()
    again = measured("a")
    assert len(counted) == 3 * 3 + 1
    assert all(equal(again[stage], whole[stage]) for stage in whole)
    measured("a", epsilon="0.060")
    assert len(counted) == 3 * 3 + 1
    measured("a", seed=1)
    # The seed is part of the protocol, of the natural points too.
    assert len(counted) == 2 * 3 * 3 + 1


def test_an_interrupted_lens_says_how_to_go_on_and_does_only_what_is_missing(
    runs, lens, measured, counted, tmp_path, monkeypatch
):
    original = lens_measure.measure_range

    def interrupted(*arguments):
        if len(counted) == 7:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(lens_measure, "measure_range", interrupted)
    code, printed, _ = lens(runs / "a", *QUICK)
    assert code == INTERRUPTED
    assert "the same command again continues from lens" in printed
    assert len(list((tmp_path / "lens" / "points").glob("*.npz"))) == 7
    monkeypatch.setattr(lens_measure, "measure_range", original)
    found = measured("a")
    assert len(counted) == 3 * 3
    undisturbed = measured("a", output="other")
    assert all(equal(found[stage], undisturbed[stage]) for stage in undisturbed)


@pytest.mark.ray
def test_shards_on_ray_give_the_points_of_one_process(measured, foreign, tmp_path):
    for word, options in (("a", Foreign()), (str(foreign[0]), foreign[1])):
        here = measured(word, options, output="here")
        there = measured(word, options, output="there", address="local")
        for stage, points in here.items():
            assert np.allclose(points.energy, there[stage].energy, atol=1e-4)
            assert np.array_equal(points.correct, there[stage].correct)
    names = [sorted(file.name for file in (tmp_path / name / "points").iterdir()) for name in ("here", "there")]
    assert names[0] == names[1]


def test_a_network_named_by_a_relative_path_is_loaded_from_any_working_directory(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    (network,) = choose_networks(["a"], checkpoint=None, foreign=Foreign(), data_dir=Path("data"))
    monkeypatch.chdir(tmp_path)
    assert network.subject.source.startswith("a/checkpoints/best")
    assert network.subject.experiment.data.directory == str(runs / "data")
    network.subject.load()


def test_foreign_weights_are_seen_as_the_same_net_of_ours(measured, foreign):
    ours, theirs = measured("b"), measured(str(foreign[0]), foreign[1])
    assert all(equal(ours[stage], theirs[stage]) for stage in ours)


def test_the_same_weights_in_another_architecture_are_not_taken_for_the_same_net(measured, foreign, counted):
    file, options = foreign
    first = measured(str(file), options)
    strided = replace(options, options=(*options.options, "stem_stride=2"))
    assert not np.allclose(measured(str(file), strided)["clean"].energy, first["clean"].energy)
    assert len(counted) == 2 * 3 * 3


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "CHECKPOINT: is missing"),
        (("nowhere",), "no such run folder"),
        (("{a}", "{a}"), "names two networks"),
        (("x={a}", "x={b}"), "names two networks"),
        (("x y={a}", "X-Y={b}"), "or two files"),
        (("{a}", "--attack", "pgd2"), "Did you mean pgd20?"),
        (("{a}", "--attack", "clean"), "compares images with their adversarial versions"),
        (("{a}", "--epsilon", "2"), "must be above 0 and at most 1"),
        (("{a}", "--epsilon", "8/x"), "--epsilon: '8/x' is not a number"),
        (("{a}/checkpoints/best", "--checkpoint", "last"), "--checkpoint: last: is for run folders, and none is given"),
        (("{a}", "--data", "cifar10"), "the networks are for digits 8x8"),
        (("{a}", "--model", "small"), "no file of weights is given"),
        (("{a}", "--checkpoint", "both"), "Allowed: best, last"),
        (("{a}", "--epochs", "0,2"), "epochs from 1 on"),
        (("{a}", "--epochs", "9"), "has the epochs 1, 2, 3"),
        (("{a}/checkpoints/best", "--epochs", "all"), "none of the networks is a run folder"),
        (("{a}", "-n", "0"), "-n: 0: must be at least 1"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(words, message, runs, lens, tmp_path):
    code, _, error = lens(*(word.format(a=runs / "a", b=runs / "b") for word in words), "--no-track")
    assert code == BAD_INPUT
    assert message in error
    assert not list(tmp_path.iterdir())


def test_networks_of_other_images_or_other_epsilons_are_not_mixed(runs, lens, natural_net, experiment, tmp_path):
    other = experiment({"model.width": 8, "data.size": 16, "evaluation.epsilon": 0.2})
    checkpoint.save(tmp_path / "c", other, natural_net, {}, EpochRecord(0, 0.0, {}))
    code, _, error = lens(runs / "a", tmp_path / "c", *QUICK, "--checkpoint", "last")
    assert code == BAD_INPUT
    assert "different data can't share attacks" in error
    near = experiment({"model.width": 8, "evaluation.epsilon": 0.2})
    checkpoint.save(tmp_path / "d", near, natural_net, {}, EpochRecord(0, 0.0, {}))
    code, _, error = lens(runs / "b", tmp_path / "d", "-n", "4", "--checkpoint", "last", "--no-track")
    assert code == BAD_INPUT
    assert "--epsilon: is missing" in error


def test_a_folder_is_logged_to_mlflow_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.csv").write_text("x\n1\n")
    uri = server.uri_of_no_study()
    for _ in range(2):
        server.log_folder(
            uri, Console(quiet=True), identity="one", kind="lens", name="lens", time=1.7e9, params={"network.0": "net"},
            metrics={"net/pgd20/robust_accuracy": 0.25}, artifacts=[tmp_path / "figures"],
        )  # fmt: skip
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("adversarial-training").experiment_id])
    (metric,) = client.get_metric_history(run.info.run_id, "net/pgd20/robust_accuracy")
    assert (metric.value, metric.timestamp) == (0.25, 1_700_000_000_000)
    assert run.data.params == {"network.0": "net"}
    assert [item.path for item in client.list_artifacts(run.info.run_id, "figures")] == ["figures/a.csv"]


def test_a_lens_has_one_run_of_mlflow_for_its_networks_wherever_they_lie(runs, lens, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client, words = MlflowClient(tracking_uri=uri), ("--attack", "kl20", "-n", "24", "--epsilon", "0.06")

    def tracked():
        return client.search_runs([client.get_experiment_by_name("adversarial-training").experiment_id])

    shutil.copytree(runs / "a", tmp_path / "here" / "a")
    assert lens("net=here/a", *words)[0] == OK
    (first,) = tracked()
    monkeypatch.chdir(tmp_path / "here")
    assert lens("net=a", *words)[0] == OK
    assert [run.info.run_id for run in tracked()] == [first.info.run_id]
    # Trained again into the same folder it is another network, with numbers of its own.
    shutil.rmtree("a")
    shutil.copytree(runs / "b", "a")
    assert lens("net=a", *words)[0] == OK
    assert len(tracked()) == 2
    assert client.get_run(first.info.run_id).data.metrics == first.data.metrics


def test_nothing_is_measured_for_a_tracker_that_does_not_answer(runs, lens, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(measuring, "measure", None)
    code, _, error = lens(runs / "a", "-n", "4")
    assert code == BAD_INPUT
    assert "no MLflow server answers" in error


def test_subsets_are_sorted_by_the_energy_of_the_reference(runs, lens, tmp_path, experiment):
    code, printed, _ = lens(runs / "b", "--output", "s.json", verb="subsets")
    content = json.loads((tmp_path / "s.json").read_text())
    assert code == OK
    model = checkpoint.load(runs / "b" / "checkpoints" / "best").load_model()
    data = load_splits(experiment().data)
    places = {index: row for row, index in enumerate(training_indices(experiment().data).tolist())}
    with torch.no_grad():
        logits = model(data.train.floats())
    correct, energy = logits.argmax(1) == data.train.labels, -logits.logsumexp(1)
    rows = {name: [places[index] for index in indices] for name, indices in content["subsets"].items()}
    assert len(rows["misclassified"]) == int((~correct).sum()) > 0
    assert not correct[rows["misclassified"]].any()
    assert correct[rows["high_energy"]].all()
    others = sorted(set(np.flatnonzero(correct)) - set(rows["high_energy"]))
    assert energy[rows["high_energy"]].min() >= energy[others].max()
    assert energy[rows["low_energy"]].max() <= energy[rows["high_energy"]].min()
    assert f"{len(rows['random'])} images" in printed
    assert experiment(
        {"data.subset": {"file": str(tmp_path / "s.json"), "name": "high_energy", "treatment": "drop"}}
    ).digest()


def test_subsets_that_overlap_are_said_to(runs, lens, tmp_path, natural_net, experiment):
    """Where fewer than twice as many are right as wrong, the highest and the lowest energies are partly the same."""
    poor = copy.deepcopy(natural_net)
    with torch.no_grad():
        poor.network[-1].bias[0] += 20.0  # says 0 of nearly everything
    checkpoint.save(tmp_path / "poor", experiment({"model.width": 8}), poor, {}, EpochRecord(0, 0.0, {}))
    code, printed, _ = lens(tmp_path / "poor", "--checkpoint", "last", verb="subsets")
    found = json.loads((tmp_path / "subsets.json").read_text())["subsets"]
    common = len(set(found["high_energy"]) & set(found["low_energy"]))
    assert code == OK
    assert common > 0
    assert f"warning: {common} images are in high_energy and in low_energy" in printed
    assert "warning" not in lens(runs / "a", verb="subsets")[1]


def test_names_are_printed_and_found_as_they_are_written(runs, lens):
    words = [f"SAT [eps=8]={runs / 'a'}", f"[red]net[/x] :smile:={runs / 'b'}"]
    code, printed, error = lens(*words, *QUICK)
    assert (code, error) == (OK, "")
    assert "\nSAT [eps=8] " in printed
    assert "\n[red]net[/x] :smile: " in printed


def test_captions_count_epochs_from_1(runs, lens, tmp_path):
    code, *_ = lens(f"A={runs / 'a' / 'checkpoints' / 'epoch_0001'}", f"B={runs / 'b'}", *QUICK, "--epochs", "1,3")
    assert code == OK
    caption = (tmp_path / "lens" / "figures" / "drift.txt").read_text()
    assert "A = epoch 2, " in caption
    assert "B = best checkpoint (epoch 3), " in caption
    assert "B = epoch 3, " in (tmp_path / "lens" / "figures" / "drift-b.txt").read_text()


def test_a_network_with_energies_that_are_not_finite_is_named(lens, tmp_path, experiment):
    test = fixed_subset(load_splits(experiment().data).test, 24).floats()
    bound = test.mean((1, 2, 3))[:8].max().item() + 1e-3  # the first eight are looked at before anything is measured
    lost = int((test.mean((1, 2, 3)) > bound).sum())
    assert 0 < lost < 24
    (tmp_path / "net.py").write_text(
        f"""
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        z = x.flatten(1)[:, :10]
        return torch.where(x.mean((1, 2, 3))[:, None] > {bound!r}, z * torch.inf, z)
def made():
    return Net()
"""
    )
    words = ["--model", "net.py:made", "--allow-code", "--data", "digits:8", "--attack", "kl20", "-n", "24"]
    code, _, error = lens(*words, "--epsilon", "0.000001", "--shard", "24", "--batch-size", "24", "--no-track")
    assert code == BAD_INPUT
    assert f"net: has energies that are not finite at {lost} (under no attack), " in error
    assert "of 24 images: leave it out" in error
