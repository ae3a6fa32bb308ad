"""MLflow is brought up to date from the journal, wherever an outage cut the last attempt short."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.journal import Journal, trial_key
from orchestrator.mirror import Mirror
from orchestrator.tracking import RUN_TAG
from search_spaces.study import parse_study
from tests.conftest import TINY
from trainers.loop import fit
from trainers.ranks import Ranks

EPOCHS = 2
NAMES = ["checkpoints", "environment.json", "experiment.yaml", "figures"]
STUDY = parse_study({"name": "s", "experiment": {**TINY, "epochs": EPOCHS}})


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    list(fit(STUDY.experiment_for({}), run_dir, ranks=Ranks.current("cpu")))
    return run_dir


@pytest.fixture
def journal(tmp_path: Path, trained: Path) -> Journal:
    """A study of one trial that has run all its epochs."""
    journal = Journal.create(tmp_path / "s", STUDY)
    shutil.copytree(trained, journal.propose(0, {}, STUDY.experiment_for({})))
    return journal


def tracked(uri: str, journal: Journal) -> tuple[MlflowClient, Any]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(STUDY.tracking.experiment)
    tag = f"tags.`{RUN_TAG}` = '{journal.identity}/{trial_key(0)}'"
    (run,) = client.search_runs([experiment.experiment_id], tag)
    return client, run


def failing(times: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, with a server that is away for the first times."""
    left = [times]

    def attempt(*arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise ConnectionError("the server is away")
        return call(*arguments, **options)

    return attempt


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_text", "set_terminated"])
def test_an_outage_at_any_call_is_made_up_for_by_the_next_update(
    call: str, uri: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(journal, uri)
    journal.ended(trial_key(0), "failed", "made up")
    monkeypatch.setattr(mirror._client, call, failing(2, getattr(mirror._client, call)))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            mirror.update(ended=False)
    mirror.update(ended=False)
    client, run = tracked(uri, journal)
    assert run.info.status == "FAILED"
    assert run.data.params["epochs"] == str(EPOCHS)
    assert run.data.tags["reason"] == "made up"
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == NAMES
    for record in journal.runs()[0].records:
        for metric, value in record.metrics.items():
            history = client.get_metric_history(run.info.run_id, metric)
            assert [entry.value for entry in history if entry.step == record.epoch] == [value]


def test_a_new_process_sends_nothing_again_of_a_trial_that_is_complete_and_closed(
    uri: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.ended(trial_key(0), "complete", "", [0.9, 0.5])
    Mirror(journal, uri).update(ended=False)
    again = Mirror(Journal(journal.folder), uri)
    sent: list[str] = []
    for call in ("log_batch", "log_text", "log_artifacts", "set_terminated"):
        monkeypatch.setattr(again._client, call, lambda *_a, _call=call, **_o: sent.append(_call))
    again.update(ended=False)
    assert sent == []
    client, run = tracked(uri, journal)
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == EPOCHS
