"""A lens in MLflow: one run for the same networks, and no more."""

from __future__ import annotations

import shutil

from mlflow import MlflowClient
from rich.console import Console

from orchestrator.exit_codes import OK
from orchestrator.tracking import server


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
