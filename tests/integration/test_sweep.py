"""One whole study through the real command line, then its numbers checked from every side."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient

from orchestrator.records.rungs import climbed
from orchestrator.records.runs import Run
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import open_study_folder, read_identity, read_study
from orchestrator.tracking.mirror import sync
from orchestrator.tracking.server import RUN_TAG
from tests.integration.conftest import Command, run, write_study
from trainers.checkpoint import load
from trainers.config import parse
from trainers.data.images import load_splits
from trainers.evaluation.ranges import evaluate_range, fixed_subset

pytestmark = pytest.mark.ray


SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "planted-tracking-password",
    "AWS_SECRET_ACCESS_KEY": "planted-storage-key",
    "MLFLOW_TRACKING_TOKEN": "planted-token",
}


class Finished:
    """A study that has run to its end."""

    def __init__(self, folder: Path, result: subprocess.CompletedProcess[str]) -> None:
        self.folder, self.result = folder, result
        self.journal = open_study_folder(folder / "runs" / "tiny")
        self.runs = self.journal.runs()
        self.client = MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/mlflow.db")
        experiment = self.client.get_experiment_by_name("adversarial-training")
        self.tracked = {
            tracked.data.tags[RUN_TAG].removeprefix(read_identity(self.journal.folder)).removeprefix("/"): tracked
            for tracked in self.client.search_runs([experiment.experiment_id])
        }

    def of_kind(self, kind: str) -> list[Run]:
        return [run for run in self.runs if run.kind == kind]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, confirm={"ladder": [{"attack": "pgd20", "samples": 40, "keep": 2}]})
    result = run("sweep", "tiny.yaml", cwd=folder, measured=False, **SECRETS)
    assert result.returncode == 0, result.stdout + result.stderr
    return Finished(folder, result)


def test_a_healthy_run_prints_nothing_noisy(study: Finished) -> None:
    assert study.result.stderr == ""
    noise = re.compile(r"warning|traceback|deprecat|INFO|\[I |\(pid=", re.IGNORECASE)
    assert [line for line in study.result.stdout.splitlines() if noise.search(line)] == []


def test_no_credential_reaches_any_output(study: Finished) -> None:
    for secret in SECRETS.values():
        assert secret not in study.result.stdout + study.result.stderr
        holders = [file for file in study.folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
        assert holders == []


def test_the_last_lines_say_where_everything_is(study: Finished) -> None:
    assert "report:  runs/tiny/report.html" in study.result.stdout
    assert "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db" in study.result.stdout


def test_every_trial_ran_all_its_epochs_once(study: Finished) -> None:
    trials = study.of_kind("trial")
    assert [trial.trial for trial in trials] == [0, 1, 2, 3]
    for trial in trials:
        assert trial.state == "complete"
        assert [record.epoch for record in trial.records] == [0, 1, 2]


def test_starting_points_come_first_and_conditions_hold(study: Finished) -> None:
    first, second, *_ = study.of_kind("trial")
    assert first.values["method.name"] == "fgsm_der"
    assert first.values["method.regularizer.beta"] == 10
    assert second.values == {"method.name": "weat_adv", "attack.epsilon": "16/255", "method.beta": 5}
    for trial in study.of_kind("trial"):
        der = trial.values["method.name"] == "fgsm_der"
        assert ("method.regularizer.gamma" in trial.values) == der
        assert ("method.beta" in trial.values) == (trial.values["method.name"] == "weat_adv")


def test_optuna_knows_every_trial_with_the_objectives_of_its_best_epoch(study: Finished) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = optuna.load_study(
        study_name="tiny", storage=storage_url(read_study(study.journal.folder), study.journal.folder)
    )
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE"] * 4
    for trial, of_ours in zip(stored.trials, study.of_kind("trial"), strict=True):
        best = max(record.metrics["val/pgd10_accuracy"] for record in of_ours.records)
        assert trial.values[1] == best
        assert tuple(trial.values) == of_ours.objectives


def test_confirmations_differ_in_the_seed_alone(study: Finished) -> None:
    confirmed = study.of_kind("confirmation")
    assert len(confirmed) == 2
    original = next(trial for trial in study.of_kind("trial") if trial.trial == confirmed[0].trial)
    assert [run.experiment.seed for run in confirmed] == [1, 2]
    for run_ in confirmed:
        assert run_.experiment.with_seed(original.experiment.seed) == original.experiment


def test_the_most_robust_trial_of_the_last_rung_is_confirmed(study: Finished) -> None:
    (rung,) = climbed(study.journal.events()).values()
    assert sorted(rung.by_trial) == [trial.trial for trial in study.of_kind("trial")]
    assert {run_.trial for run_ in study.of_kind("confirmation")} == {rung.kept[0]}
    assert rung.by_trial[rung.kept[0]] == max(rung.by_trial.values())


def test_flags_are_those_of_attacking_the_checkpoint_again(study: Finished) -> None:
    confirmed = study.of_kind("confirmation")[0]
    evaluation = confirmed.evaluation
    assert evaluation is not None
    assert list(evaluation.flags.standing) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert evaluation.flags.stop == 12
    torch.set_num_threads(1)
    checkpoint = load(confirmed.folder / "checkpoints" / "best")
    images = fixed_subset(load_splits(checkpoint.experiment.data).test, 12)
    parts = [
        evaluate_range(checkpoint.load_model(), images, evaluation.protocol, *bounds) for bounds in ((0, 8), (8, 12))
    ]
    assert parts[0].merged(parts[1]) == evaluation.flags


def test_mlflow_has_one_parent_with_a_child_for_every_run(study: Finished) -> None:
    parent = study.tracked[""]
    assert parent.info.status == "FINISHED"
    children = {key: tracked for key, tracked in study.tracked.items() if key}
    assert set(children) == {run_.key for run_ in study.runs}
    for tracked in children.values():
        assert tracked.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert tracked.info.status == "FINISHED"


def test_mlflow_holds_every_metric_of_every_epoch_exactly_once(study: Finished) -> None:
    sync(study.journal, f"sqlite:///{study.folder}/runs/mlflow.db")  # sending again must change nothing
    for run_ in study.runs:
        run_id = study.tracked[run_.key].info.run_id
        for name in ("val/pgd10_accuracy", "probe_reference/delta_energy/mean", "train/loss", "val/delta_energy/q95"):
            history = sorted(study.client.get_metric_history(run_id, name), key=lambda metric: metric.step)
            assert [metric.step for metric in history] == [0, 1, 2]
            assert [metric.value for metric in history] == [record.metrics[name] for record in run_.records]


def test_mlflow_params_are_the_flattened_experiment_with_plain_numbers(study: Finished) -> None:
    run_ = study.of_kind("trial")[1]
    params = study.tracked[run_.key].data.params
    assert float(params["attack.epsilon"]) == 16 / 255
    assert study.tracked[run_.key].data.tags["attack.epsilon.text"] == "16/255"
    assert float(params["method.beta"]) == 5
    assert params["method.name"] == "weat_adv"
    assert params["method.regularizer.name"] == "none"
    assert "data.directory" not in params
    assert int(params["epochs"]) == 3


def test_mlflow_artifacts_reproduce_the_run(study: Finished, tmp_path: Path) -> None:
    run_ = study.of_kind("confirmation")[0]
    tracked = study.tracked[run_.key]
    local = Path(study.client.download_artifacts(tracked.info.run_id, "", str(tmp_path)))
    assert parse(__import__("yaml").safe_load((local / "experiment.yaml").read_text())) == run_.experiment
    best = load(local / "checkpoints" / "best")
    assert best.experiment == run_.experiment
    assert load(local / "checkpoints" / "last").record.epoch == 2
    assert (local / "figures" / "energies.png").stat().st_size > 10_000
    flags = json.loads((local / "evaluation.json").read_text())
    assert tracked.data.metrics["test/autoattack_accuracy"] == flags["accuracies"]["square"]
    assert json.loads((local / "environment.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]


def test_the_report_states_the_mean_and_sample_deviation_of_the_seeds(study: Finished) -> None:
    page = (study.journal.folder / "report.html").read_text()
    robust = [run_.evaluation.robust_accuracy for run_ in study.of_kind("confirmation") if run_.evaluation]
    assert f"{100 * statistics.mean(robust):.2f}" in page
    assert f"{100 * statistics.stdev(robust):.2f}" in page
    assert list((study.journal.folder / "figures").glob("*.svg"))


@pytest.fixture
def beside(study: Finished, answer: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`answer` in the folder of the study."""
    monkeypatch.chdir(study.folder)
    return answer


def test_running_it_again_does_nothing_twice(study: Finished, beside: Command) -> None:
    before = {file: file.stat().st_mtime_ns for file in study.journal.folder.rglob("records.jsonl")}
    again = beside("sweep", "tiny.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.startswith("nothing was left to do: the study is finished\n")
    assert {file: file.stat().st_mtime_ns for file in study.journal.folder.rglob("records.jsonl")} == before
    assert len(open_study_folder(study.journal.folder).runs()) == len(study.runs)


def test_it_can_be_confirmed_again_with_other_settings(study: Finished) -> None:
    again = run("confirm", "runs/tiny", "--seeds", "1", "--samples", "8", "--attack", "pgd20", cwd=study.folder)
    assert again.returncode == 0, again.stdout + again.stderr
    runs = open_study_folder(study.journal.folder).runs()
    assert len(runs) == len(study.runs)
    protocols = [run_.evaluation.protocol for run_ in runs if run_.evaluation]
    assert [(protocol.attack, protocol.samples) for protocol in protocols] == [("pgd20", 8), ("autoattack", 12)]


def test_another_study_under_the_same_name_is_refused(beside: Command) -> None:
    refused = beside("sweep", "tiny.yaml", "experiment.epochs=4")
    assert refused.returncode == 2
    assert "experiment.epochs: 4, but the study in runs/tiny has 3" in refused.stderr


def test_a_checkpoint_of_a_study_can_be_evaluated_by_itself(study: Finished, beside: Command) -> None:
    folder = study.of_kind("trial")[0].folder
    words = ["--attack", "pgd20", "-n", "20", "--threads", "1", "--output", "flags.json"]
    result = beside("evaluate", str(folder), *words)
    assert result.returncode == 0, result.stderr
    content = json.loads((study.folder / "flags.json").read_text())
    share = content["accuracies"]["pgd20"]
    assert share == sum(content["flags"]["standing"]["pgd20"]) / 20
    assert f"robust accuracy {100 * share:.2f} ± " in result.stdout
