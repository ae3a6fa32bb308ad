"""`orchestrator generate`: images, table, figures and page; what is made stays, what is missing is made the same."""

from __future__ import annotations

import csv
import re
import weakref
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient

from orchestrator.cli import main
from orchestrator.exit_codes import BAD_INPUT, OK
from orchestrator.generation import making
from orchestrator.generation.options import INITS, Generation, load_generation, shipped_generations
from trainers import checkpoint
from trainers.config import parse
from trainers.data.extra import read_extra
from trainers.data.images import load_splits
from trainers.evaluation import classifier
from trainers.generation.settings import StartSettings
from trainers.generation.starts import STARTS, pca
from trainers.problems import InvalidInput
from trainers.records import EpochRecord

QUICK = ("--per-class", "3", "--steps", "12", "--shard", "20", "--no-track", "--threads", "1")


@pytest.fixture(scope="module")
def run_folder(natural_net, experiment, tmp_path_factory):
    folder, settings = tmp_path_factory.mktemp("run"), experiment({"model.width": 8})
    checkpoint.mark_best(folder, checkpoint.save(folder, settings, natural_net, {}, EpochRecord(2, 0.0, {})))
    return folder


@pytest.fixture
def generate(run_folder, capsys, tmp_path, monkeypatch):
    """`generate(*words)` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words, quick=QUICK):
        code = main(["generate", f"net={run_folder}", *quick, *map(str, words)])
        return code, *capsys.readouterr()

    return called


def images_of(init="pca", folder="generated"):
    with np.load(Path(folder) / "images" / f"net-{init}.npz") as content:
        return content["image"], content["label"]


def test_images_table_figures_and_page_are_written(generate, run_folder):
    code, printed, _ = generate("--init", "pca,noise", "--classifier", run_folder)
    assert code == OK
    images, labels = images_of()
    assert images.shape == (30, 8, 8, 1)
    assert np.bincount(labels).tolist() == [3] * 10
    with open("generated/metrics.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["init"] for line in lines] == ["pca", "noise"]
    for line in lines:
        assert line["steps"] == "12.0"
        assert float(line["FID-clf-30"]) > 0
        assert f"{float(line['FID-clf-30']):.4g}" in printed
    assert lines[0]["FID-clf-30"] != lines[1]["FID-clf-30"]
    for name in ("mosaic-net-pca", "mosaic-net-noise", "energies"):
        assert {file.suffix for file in Path("generated/figures").glob(f"{name}.*")} >= {".svg", ".png"}
    page = Path("generated/generated.html").read_text()
    assert page.count("<svg") == 3
    assert "η = 0.025, ζ = 0.8, noise 0.001, 12 steps; 3 images a class" in page
    assert "final E(x,y) [nats]" in page
    linked = re.findall(r'href="(figures/[^"]+)"', page)
    assert len(linked) == 4  # three figures, one of which has data
    assert all((Path("generated") / file).is_file() for file in linked)
    assert len(list(Path("generated/images/net-pca").glob("class003-*.png"))) == 3


def test_the_table_and_the_traces_say_what_the_chains_did(generate):
    generate("--init", "noise", "--adaptive-stop", "--tolerance", "1", "--steps", "30")
    with open("generated/metrics.csv") as file:
        (line,) = csv.DictReader(file)
    with open("generated/figures/energies.csv") as file:
        traces = list(csv.DictReader(file))
    last = [float(trace["target_energy"]) for trace in traces if trace["step"] == "30"]
    assert float(line["final_energy"]) == pytest.approx(np.mean(last))
    assert len({trace["training_energy"] for trace in traces}) == 10
    assert 0 <= float(line["steps"]) <= 30


def test_a_network_is_looked_at_once_for_all_its_starts(generate, monkeypatch):
    looked, original = [], classifier.check_classifier

    def counted(model, *arguments, **options):
        looked.append(model)
        return original(model, *arguments, **options)

    monkeypatch.setattr(classifier, "check_classifier", counted)
    assert generate("--init", "noise,gaussian")[0] == OK
    assert len(looked) == 1


def test_a_missing_shard_alone_is_made_again_and_the_same(generate):
    _, first_time, _ = generate()
    before = images_of()
    shards = sorted(Path("generated/shards").glob("*-0000*.npz"))
    assert len(shards) == 2
    shards[1].unlink()
    kept = shards[0].stat().st_mtime_ns
    _, second_time, _ = generate()
    assert first_time.count("chains") == 2
    assert second_time.count("chains") == 1
    assert shards[0].stat().st_mtime_ns == kept
    assert all(np.array_equal(one, other) for one, other in zip(before, images_of(), strict=True))


def test_the_same_images_are_one_run_of_mlflow_whatever_else_was_made_meanwhile(generate, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for words in ((), ("--seed", "1"), ()):
        assert generate("--init", "noise", "--track", *words)[0] == OK
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("adversarial-training").experiment_id])
    assert len(runs) == 2
    assert all(len(client.get_metric_history(run.info.run_id, "net/noise/final_energy")) == 1 for run in runs)


def test_of_many_classes_one_is_fitted_at_a_time_and_the_images_are_the_same(generate, monkeypatch):
    generate()
    kept, fits, most = images_of(), [], 0

    def counted(images, settings):
        nonlocal most
        draw = pca(images, settings)
        fits.append(weakref.ref(draw))
        most = max(most, sum(fit() is not None for fit in fits))
        return draw

    monkeypatch.setitem(STARTS, "pca", counted)
    monkeypatch.setattr(making, "_CLASSES_KEPT", 9)
    generate("--output", "frugal")
    assert (len(fits), most) == (2 * 10, 1)
    assert all(np.array_equal(one, other) for one, other in zip(kept, images_of(folder="frugal"), strict=True))


def test_seeds_give_other_images_and_what_decides_them_is_not_confused(generate):
    generate()
    first = images_of()[0]
    generate("--seed", "1")
    assert not np.array_equal(first, images_of()[0])
    generate("--step-size", "0.05")
    assert not np.array_equal(first, images_of()[0])
    generate()
    assert np.array_equal(first, images_of()[0])


def test_the_same_weights_on_other_images_are_not_taken_for_what_was_made(generate, run_folder, natural_net, tmp_path):
    torch.save(natural_net.network.state_dict(), tmp_path / "theirs.pt")
    foreign = ("--model", "small", "--model-option", "width=8", "--normalization", "none", "--data", "digits:8")
    main(["generate", f"net={tmp_path / 'theirs.pt'}", *QUICK, *foreign])
    first = images_of()[0]
    main(["generate", f"net={tmp_path / 'theirs.pt'}", *QUICK, *foreign, "--model-option", "stem_stride=2"])
    assert not np.array_equal(first, images_of()[0])
    main(["generate", f"net={tmp_path / 'theirs.pt'}", *QUICK, *foreign[:-1], "digits:16"])
    assert images_of()[0].shape == (30, 16, 16, 1)


def test_a_model_without_parameters_draws_and_is_seen(generate, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Columns(nn.Module):\n"
        "    def forward(self, images):\n        return 5 * images.flatten(1)[:, 20:30]\n"
    )
    words = ("--model", "net.py:Columns", "--allow-code", "--data", "digits:8", "--no-track")
    assert main(["generate", *words, "--per-class", "2", "--steps", "4"]) == OK
    assert main(["lens", *words, "--attack", "pgd20", "-n", "10"]) == OK


def test_a_setting_of_one_start_does_not_make_the_others_again(generate):
    generate("--init", "noise,local_pca", "--neighbors", "20")
    _, printed, _ = generate("--init", "noise,local_pca", "--neighbors", "30")
    assert re.findall(r"net, (\w+): chains", printed) == ["local_pca", "local_pca"]


def test_pictures_of_another_call_do_not_stay(generate):
    generate()
    generate("--classes", "4")
    assert {file.name[:8] for file in Path("generated/images/net-pca").iterdir()} == {"class004"}


def test_mosaics_of_another_call_do_not_stay_and_its_images_do(generate):
    generate("--init", "noise")
    generate()
    assert {file.stem for file in Path("generated/figures").glob("mosaic-*")} == {"mosaic-net-pca"}
    assert {file.name for file in Path("generated/images").glob("*.npz")} == {"net-noise.npz", "net-pca.npz"}


def test_a_file_holds_the_networks_and_the_options_and_the_command_line_goes_over_it(generate, run_folder, tmp_path):
    table = {"networks": {"one": str(run_folder), "other": str(run_folder)}, "init": ["noise", "gaussian"]}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table | {"per_class": 2, "steps": 5, "classes": [0, 4]}))
    assert main(["generate", "--study", "table.yaml", "--steps", "3", "--no-track"]) == OK
    with open("generated/metrics.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["network"], line["init"]) for line in lines] == [
        (network, init) for network in ("one", "other") for init in ("noise", "gaussian")
    ]
    assert {(line["images"], line["steps"]) for line in lines} == {("4", "3.0")}
    # Networks on the command line take the place of those of the file.
    generate("--study", "table.yaml")
    with open("generated/metrics.csv") as file:
        assert [line["network"] for line in csv.DictReader(file)] == ["net", "net"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"inits": ["pca"]}, "^inits: unknown field 'inits'. Did you mean init"),
        ({"steps": 0}, "^steps: 0"),
        ({"tolerance": 0.1}, "^tolerance: 0.1: is for adaptive_stop"),
        ({"init": ["pcs"]}, "^init.0: 'pcs'"),
        ({3: "pca"}, "^3: 3: Keys should be strings"),
    ],
)
def test_mistakes_in_a_file_are_named_as_they_are_written_there(content, said, tmp_path):
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InvalidInput, match=said):
        load_generation(str(tmp_path / "table.yaml"), {"per_class": 3})


@pytest.mark.parametrize("name", shipped_generations())
def test_tables_that_ship_with_the_package_are_whole(name):
    settings = load_generation(name, {"per_class": 2})
    assert settings.per_class == 2
    assert set(settings.init) == set(INITS)
    defaults = Generation()
    assert (settings.step_size, settings.inertia, settings.noise) == (
        defaults.step_size, defaults.inertia, defaults.noise,
    )  # fmt: skip


def test_a_judge_of_other_images_is_refused_before_anything_is_made(generate, natural_net, experiment, tmp_path):
    other = experiment({"model.width": 8, "data.size": 16})
    checkpoint.save(tmp_path / "other", other, natural_net, {}, EpochRecord(0, 0.0, {}))
    code, _, error = generate("--classifier", tmp_path / "other" / "checkpoints" / "epoch_0000")
    assert code == BAD_INPUT
    assert "is for digits 16x16, not digits 8x8" in error
    assert not Path("generated").exists()


@pytest.mark.ray
def test_shards_on_ray_give_the_images_of_one_process(generate):
    generate("--init", "local_pca")
    generate("--init", "local_pca", "--output", "there", "--address", "local")
    here, there = images_of("local_pca"), images_of("local_pca", "there")
    assert np.array_equal(here[1], there[1])
    assert np.abs(here[0].astype(int) - there[0]).max() <= 1


def test_generated_images_can_be_trained_on(generate, experiment):
    generate("--classes", "2,7")
    data = {"size": 8, "extra": str(Path("generated/images/net-pca.npz").absolute()), "extra_fraction": 0.5}
    images, labels = read_extra(parse(experiment().to_dict() | {"data": data}).data)
    assert len(images) == 6
    assert sorted(set(labels.tolist())) == [2, 7]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--init", "pcs"), "--init.*pca"),
        (("--classes", "3,10"), "classes.*0 to 9"),
        (("--classes", "3,b"), "--classes.*'b'"),
        (("--inertia", "1"), "--inertia.*less than 1"),
        (("--per-class", "0"), "--per-class.*greater than or equal to 1"),
        (("--variance", "1.5"), "--variance.*less than or equal to 1"),
        (("--study", "inits_and_model"), "--study.*inits_and_models"),
        (("--inception", "absent.pth"), "absent.pth.*not a file"),
        (("--step-size", "0"), "--step-size.*greater than 0"),
        (("--noise", "nan"), "--noise.*finite"),
        (("--classes", "1,01"), "--classes.*twice"),
        (("--init", "pca,noise,pca"), "--init.*twice"),
        (("--tolerance", "0.1"), "--tolerance.*for adaptive_stop"),
        (("--init", "pca", "--neighbors", "9"), "--neighbors.*for the init local_pca"),
        (("--alexnet", "any.pth"), "LPIPS takes images of 31 pixels.*these have 8"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(words, said, generate):
    code, _, error = generate(*words)
    assert code == BAD_INPUT
    assert re.search(said, error, re.DOTALL)
    assert not Path("generated/shards").exists()


def test_every_start_and_its_settings_can_be_asked_for():
    assert list(INITS) == list(STARTS)
    assert {name for names in INITS.values() for name in names} == {field.name for field in fields(StartSettings)}


def test_energies_of_training_images_that_are_not_finite_are_said(generate, tmp_path, capsys):
    train = load_splits(parse({"data": {"name": "digits", "size": 8}}).data).train
    brightness = train.floats().mean((1, 2, 3))
    bound = brightness[:8].max().item() + 1e-3  # the first eight are looked at before anything is made
    lost = sorted(set(train.labels[brightness > bound].tolist()))
    assert lost
    (tmp_path / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, images):\n"
        "        logits = images.flatten(1)[:, 20:30]\n"
        f"        return torch.where(images.mean((1, 2, 3))[:, None] > {bound!r}, logits * 0 + torch.inf, logits)\n"
    )
    words = ("--model", "net.py:Net", "--allow-code", "--data", "digits:8", *QUICK)
    assert main(["generate", *words]) == OK
    printed = capsys.readouterr().out
    assert f"warning: net: E(x,y) of training images is not finite in class {', '.join(map(str, lost))}: " in printed
    assert "warning" not in generate()[1]
