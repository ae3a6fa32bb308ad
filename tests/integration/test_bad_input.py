"""Bad input: exit code 2, one message that names the field, nothing launched, no traceback."""

from __future__ import annotations

import csv
import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from orchestrator.records.study_folder import create_study_folder
from search_spaces.study import parse_study
from tests.integration.conftest import Command, write_study

CASES = [
    (["experiment.method.nam=fgsm"], "experiment.method.nam", "Did you mean name?"),
    (["experiment.method=fgms"], "experiment.method.name", "Did you mean fgsm?"),
    (["experiment.method=fgsm", "space={}", "search.start=[]", "experiment.method.beta=3"], "method.beta", "no beta"),
    (["space={}", "search.start=[]", "experiment.method={name: fgsm_der, regularizer: {gamma: -1}}"], "gamma", ">= 0"),
    (["experiment.attack.epsilon=1.5"], "experiment.attack.epsilon", "less than or equal to 1"),
    (["space={method.gama: [1, 2]}", "search.start=[]"], "space.method.gama", "unknown field"),
    (["resources.workers=400", "experiment.optimizer.batch_size=400"], "resources.workers", "400 workers"),
    (["confirm.workers=3"], "confirm.workers", "divided"),
    (["experiment.data.name=cifar10", "experiment.data.size=32"], "data.directory", "ORCHESTRATOR_DATA"),
    (["tracking.uri=http://127.0.0.1:9"], "tracking.uri", "no MLflow server answers"),
    (["tracking.uri=http://me:secret@127.0.0.1:9"], "tracking.uri", "MLFLOW_TRACKING_PASSWORD"),
    (["tracking.uri=sqlite:////nonexistent/mlflow.db"], "tracking.uri", "/nonexistent"),
    (["tracking.uri=sqlite:////tmp"], "tracking.uri", "is a folder; name a file, e.g. sqlite:////tmp/mlflow.db"),
    (["tracking.uri=sqlite:///"], "tracking.uri", "is a folder; name a file"),
    (["tracking.uri=htp://127.0.0.1:5000"], "tracking.uri", "allowed: http(s)://"),
    (["tracking.uri=file:///tmp/mlruns"], "tracking.uri", "allowed: http(s)://"),
    (["tracking.uri=mlruns"], "tracking.uri", "allowed: http(s)://"),
    (["search.trails=3"], "search.trails", "Did you mean trials?"),
    (["search.sampler=tpee"], "search.sampler", "tpee"),
    (["--storage", "/proc/nowhere"], "--storage", "/proc/nowhere"),
    (["nonsense"], "nonsense", "key=value"),
]


@pytest.mark.parametrize(("words", "field", "hint"), CASES, ids=lambda value: str(value)[:40])
def test_a_mistake_ends_at_once_with_its_field(
    answer: Command, tmp_path: Path, words: list[str], field: str, hint: str
) -> None:
    write_study(tmp_path)
    result = answer("sweep", "tiny.yaml", *words)
    assert result.returncode == 2, result.stdout + result.stderr
    assert field in result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "tiny" / "journal.jsonl").exists()


def test_images_that_can_not_be_read_do_not_cost_the_study_its_name(answer: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "images" / "cifar-10-batches-py").mkdir(parents=True)
    words = ["experiment.data.name=cifar10", "experiment.data.size=32", "--data-dir", "images"]
    result = answer("sweep", "tiny.yaml", *words)
    assert (result.returncode, result.stdout) == (2, f"reading cifar10 in {tmp_path}/images for the first time\n")
    assert result.stderr.startswith(f"error: data.directory: '{tmp_path}/images': Dataset not found or corrupted")
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.parametrize(
    "verb", [["sweep", "tiny.yaml", "experiment.data={name: cifar10}"], ["train", "data=cifar10", "epochs=1"]]
)
def test_a_folder_of_data_is_the_one_that_was_typed(answer: Command, tmp_path: Path, verb: list[str]) -> None:
    """To YAML ` #` begins a comment and `: ` ends a key."""
    write_study(tmp_path)
    result = answer(*verb, "--data-dir", "disk #1: images")
    assert result.returncode == 2
    assert f"error: data.directory: '{tmp_path}/disk #1: images' holds no cifar-10-batches-py" in result.stderr


def test_a_folder_of_data_is_no_option_where_folders_are_compared(answer: Command, tmp_path: Path) -> None:
    write_study(tmp_path, space={"data.directory": ["a", "b"]})
    result = answer("sweep", "tiny.yaml", "--data-dir", "c")
    assert result.returncode == 2
    assert "error: --data-dir: has no effect, for data.directory varies: set it in the space" in result.stderr


def test_a_subset_of_other_images_is_found_before_anything_is_created(answer: Command, tmp_path: Path) -> None:
    (tmp_path / "subsets.json").write_text(json.dumps({"subsets": {"beyond": [10**6]}}))
    write_study(tmp_path)
    subset = "{file: subsets.json, name: beyond, treatment: drop}"
    result = answer("sweep", "tiny.yaml", f"experiment.data.subset={subset}")
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: data.subset: 0 of the 1 images of 'beyond' are held out here and 0 trained on" in result.stderr
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_cluster_that_does_not_answer_is_named(answer: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    result = answer("sweep", "tiny.yaml", "--address", "127.0.0.1:9")
    assert result.returncode == 3
    assert "the Ray cluster can't be reached: nothing answers at 127.0.0.1:9" in result.stderr
    assert not (tmp_path / "runs" / "tiny" / "journal.jsonl").exists()


@pytest.mark.parametrize("address", ["foo", "ray://127.0.0.1:10001", "127.0.0.1"])
def test_what_is_no_address_of_a_cluster_ends_before_anything_is_created(
    answer: Command, tmp_path: Path, address: str
) -> None:
    write_study(tmp_path)
    result = answer("sweep", "tiny.yaml", "--address", address)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: --address: '{address}': allowed: HOST:PORT")
    assert not (tmp_path / "runs" / "tiny").exists()
    jobs = answer("job", "list", "--address", address)
    assert (jobs.returncode, jobs.stdout) == (2, "")
    assert "allowed: http://HEAD:8265" in jobs.stderr


def test_a_mistake_ends_a_process_of_its_own_too(orchestrator: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    result = orchestrator("sweep", "tiny.yaml", "experiment.epochs=0")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: experiment.epochs: 0:")


def test_all_mistakes_come_in_one_message(answer: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    words = ["experiment.epochs=0", "experiment.attack.epsilon=7", "experiment.model.widht=3"]
    result = answer("sweep", "tiny.yaml", *words)
    assert result.returncode == 2
    for field in ("epochs", "attack.epsilon", "model.widht"):
        assert f"experiment.{field}" in result.stderr


def test_all_mistakes_of_a_study_file_come_at_once_and_nothing_else(answer: Command, tmp_path: Path) -> None:
    study = {
        "name": "bad",
        "experiment": {"method": {"nam": "fgsm"}, "epochs": 0},
        "space": {"model.widht": [4, 8]},
        "search": {"trails": 3, "objectives": ["val/nothing"]},
    }
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(study))
    said = answer("validate", "bad.yaml").stderr.splitlines()
    assert said[0] == "errors:"
    fields = sorted(line.split(": ")[1] for line in said[1:])
    assert fields == [
        "experiment.epochs", "experiment.method.nam", "search.objectives.0", "search.trails", "space.model.widht"
    ]  # fmt: skip


def test_every_file_is_validated_and_named(answer: Command, tmp_path: Path) -> None:
    write_study(tmp_path, search={"trials": 0})
    (tmp_path / "torn.yaml").write_text("name: [")
    result = answer("validate", "tiny.yaml", "quickstart", "torn.yaml", "missing.yaml")
    assert result.returncode == 2
    assert result.stdout.startswith("quickstart: valid")
    for line in ("tiny.yaml: search.trials: 0:", "torn.yaml: can't be read:", "missing.yaml: no such file"):
        assert f"\n{line}" in result.stderr


def test_a_corrupt_checkpoint_is_named(answer: Command, tmp_path: Path) -> None:
    words = ["data.size=8", "data.train_samples=100", "epochs=1", "model.width=4", "evaluation.probe_samples=10"]
    assert answer("train", *words, "--run-dir", "run").returncode == 0
    weights = tmp_path / "run" / "checkpoints" / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    result = answer("evaluate", "run", "--attack", "clean")
    assert result.returncode == 2
    assert "model.safetensors does not match its checksum" in result.stderr


def test_a_folder_that_is_no_study_is_named(answer: Command, tmp_path: Path) -> None:
    for verb in ("resume", "report", "confirm", "sync"):
        result = answer(verb, str(tmp_path))
        assert result.returncode == 2
        assert "is not a study folder" in result.stderr


def test_a_place_that_can_not_be_written_is_named(answer: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    study = parse_study({"name": "tiny"})
    (create_study_folder(tmp_path / "tiny", study).folder / "figures").write_text("in the way")
    tiny = ["data.size=8", "data.train_samples=100", "epochs=1", "model.width=4", "evaluation.probe_samples=10"]
    for words, place in ((["report", "tiny"], "tiny/figures"), (["train", *tiny, "--run-dir", "file"], "file")):
        result = answer(*words)
        assert result.returncode == 3, result.stderr
        assert result.stderr.startswith(f"error: {tmp_path / place}: ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["evaluate", "lens", "generate", "train"])
@pytest.mark.parametrize("threads", ["0", "-1"])
def test_a_number_of_threads_is_at_least_one(answer: Command, verb: str, threads: str) -> None:
    result = answer(verb, "--threads", threads)
    assert result.returncode == 2
    assert "--threads" in result.stderr


def test_train_says_error_as_every_verb_does(answer: Command) -> None:
    for words in (["epochs=0"], ["epochs=0", "--threads", "1"]):
        assert answer("train", *words).stderr.startswith("error: epochs: 0:")
    assert answer("train", "epochs=0", "seed=-1").stderr.startswith("errors:\n")


def test_debug_shows_the_traceback(orchestrator: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    assert "Traceback" in orchestrator("--debug", "sweep", "tiny.yaml", "epochs=0").stderr


@pytest.mark.parametrize("words", [["--help"], ["methods"], ["sweep", "quickstart", "--dry-run"]], ids=str)
def test_questions_are_answered_without_torch_or_ray(orchestrator: Command, words: list[str]) -> None:
    result = orchestrator(*words, PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "ray", "mlflow", "optuna", "matplotlib", "sklearn"}


def test_the_plan_states_cost_and_limits_before_anything_starts(answer: Command, tmp_path: Path) -> None:
    result = answer("sweep", "quickstart", "--dry-run")
    for statement in (
        "8 trials (tpe, seed 0)",
        "fgsm_der         8 passes per image",
        "limited by",
        "GB of checkpoints",
    ):
        assert statement in result.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_listings_come_in_three_formats(answer: Command, form: str) -> None:
    for verb in (["methods"], ["methods", "trades_der"], ["methods", "fgsm"], ["spaces"], ["spaces", "quickstart"]):
        result = answer(*verb, "--format", form)
        assert result.returncode == 0, result.stderr
        if form == "json":
            assert isinstance(json.loads(result.stdout), dict if verb == ["spaces", "quickstart"] else list)
        elif form == "csv":
            assert "\r" not in result.stdout
            rows = list(csv.reader(result.stdout.splitlines()))
            assert len({len(row) for row in rows}) == 1
            assert rows[0][0] in ("method", "field", "study")
        else:
            assert result.stdout
        refused = answer(*verb, "--format", "xml")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "--format: unknown format 'xml'" in refused.stderr
    assert "--format: unknown format 'xml'" in answer("compare", "nowhere", "--format", "xml").stderr
    assert "Did you mean trades?" in answer("methods", "trade").stderr


def test_the_version_is_that_of_the_package(answer: Command) -> None:
    result = answer("--version")
    assert (result.returncode, result.stdout) == (0, f"energy-orchestrator {version('energy-orchestrator')}\n")


def test_paths_of_a_submitted_study_are_those_of_the_cluster(answer: Command) -> None:
    result = answer(
        "submit", "quickstart", "--storage", "runs", "--data-dir", "data", "--address", "http://127.0.0.1:9"
    )
    assert result.returncode == 2
    assert "--storage: 'runs': must be an absolute path" in result.stderr
    assert "--data-dir: 'data': must be an absolute path" in result.stderr


def test_a_submitted_study_can_not_have_its_database_in_a_file_of_this_machine(answer: Command) -> None:
    words = ("submit", "quickstart", "--storage", "/shared/runs", "--address", "http://127.0.0.1:9")
    result = answer(*words, "search.storage=sqlite:///optuna.db")
    assert result.returncode == 2
    assert "optuna.db': lies outside of /shared/runs" in result.stderr
    # Below the shared folder it is refused no more: what fails is that nobody answers.
    assert "lies outside" not in answer(*words, "search.storage=sqlite:////shared/runs/optuna.db").stderr
