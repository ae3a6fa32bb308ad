"""MLflow is brought up to date from the journal, wherever an outage cut the last attempt short."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from orchestrator.records.events import Started
from orchestrator.records.journal import EVALUATION_FILE, Journal
from orchestrator.records.runs import trial_key
from orchestrator.records.study_folder import create_study_folder, read_identity
from orchestrator.tracking.mirror import Mirror, NotSent
from orchestrator.tracking.parameters import flatten
from orchestrator.tracking.server import RUN_TAG, log_folder
from search_spaces.study import Tracking, parse_study
from tests.conftest import TINY
from tests.orchestrator.made_up import end_run, propose_run
from trainers.config import parse
from trainers.evaluation.result import EvaluationResult, Flags, Protocol
from trainers.loop import fit
from trainers.ranks import Ranks
from trainers.records import append_record

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
    journal = create_study_folder(tmp_path / "s", STUDY)
    journal.append(Started(pid=1, environment={"git_commit": "aaaa"}))
    shutil.copytree(trained, propose_run(journal, 0, {}, STUDY.experiment_for({})))
    return journal


@pytest.fixture
def two_ended(journal: Journal, trained: Path) -> Journal:
    """With a second trial; both have ended."""
    shutil.copytree(trained, propose_run(journal, 1, {}, STUDY.experiment_for({})))
    for number in (0, 1):
        end_run(journal, trial_key(number), "failed", "made up")
    return journal


def tracked(uri: str, journal: Journal, trial: int = 0) -> tuple[MlflowClient, Any]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(STUDY.tracking.experiment)
    tag = f"tags.`{RUN_TAG}` = '{read_identity(journal.folder)}/{trial_key(trial)}'"
    (run,) = client.search_runs([experiment.experiment_id], tag)
    return client, run


def take_away(mirror: Mirror, call: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is away from this call on, and answers again when it was asked so often."""
    left, away = [times], [False]

    def attempt(call: Callable[..., Any], *, fails_first: bool) -> Callable[..., Any]:
        def answer(*arguments: Any, **options: Any) -> Any:
            if fails_first and left[0]:
                left[0] -= 1
                away[0] = True
            elif fails_first:
                away[0] = False
            if away[0]:
                raise ConnectionError("the server is away")
            return call(*arguments, **options)

        return answer

    client = mirror._client
    monkeypatch.setattr(client, "get_run", attempt(client.get_run, fails_first=False))
    monkeypatch.setattr(client, call, attempt(getattr(client, call), fails_first=True))


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_text", "set_terminated"])
def test_an_outage_at_any_call_is_made_up_for_by_the_next_update(
    call: str, uri: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(journal, uri)
    end_run(journal, trial_key(0), "failed", "made up")
    take_away(mirror, call, 2, monkeypatch)
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


CALLS = ["log_batch", "log_text", "log_artifact", "log_artifacts", "set_tag", "set_terminated"]


def watched(mirror: Mirror, run_id: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls for this run, as they come, which go through all the same."""
    sent: list[str] = []

    def watch(call: str, made: Callable[..., Any]) -> Callable[..., Any]:
        def answer(run: str, *arguments: Any, **options: Any) -> Any:
            sent.extend([call] * (run == run_id))
            return made(run, *arguments, **options)

        return answer

    for call in CALLS:
        monkeypatch.setattr(mirror._client, call, watch(call, getattr(mirror._client, call)))
    return sent


def test_every_empty_slot_is_a_value_to_compare_by() -> None:
    sent = dict(flatten(parse({"method": "fgsm"}).model_dump()))
    slots = ("weighting", "regularizer", "weight_perturbation")
    assert [sent.get(f"method.{slot}.name") for slot in slots] == ["none"] * 3


@pytest.mark.parametrize(("state", "status"), [("complete", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")])
def test_a_new_process_sends_nothing_again_of_a_trial_that_has_ended_and_is_closed(
    state: str, status: str, uri: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_run(journal, trial_key(0), state, "", [0.9, 0.5])
    Mirror(journal, uri).update(ended=False)
    client, run = tracked(uri, journal)
    again = Mirror(Journal(journal.folder), uri)
    sent = watched(again, run.info.run_id, monkeypatch)
    again.update(ended=False)
    assert sent == []
    assert run.info.status == status
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == EPOCHS


def test_a_closed_trial_that_has_gone_on_is_sent_by_the_next_process(
    uri: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_run(journal, trial_key(0), "stopped", "")
    Mirror(journal, uri).update(ended=False)
    client, run = tracked(uri, journal)
    (stopped,) = journal.runs()
    append_record(stopped.folder, replace(stopped.records[-1], epoch=EPOCHS))
    cut_short = Mirror(Journal(journal.folder), uri)

    def refuse(*_: Any) -> None:
        raise OSError("too large")

    monkeypatch.setattr(cut_short._client, "log_artifacts", refuse)
    with pytest.raises(NotSent):
        cut_short.update(ended=False)
    again = Mirror(Journal(journal.folder), uri)
    sent = watched(again, run.info.run_id, monkeypatch)
    again.update(ended=False)
    assert sent.count("log_artifacts") == 2  # the best epoch and the last
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == EPOCHS + 1
    # It may also end otherwise, with no record more.
    for state, reason, status in (("failed", "a", "FAILED"), ("failed", "b", "FAILED"), ("complete", "c", "FINISHED")):
        end_run(journal, trial_key(0), state, reason, [])
        again.update(ended=False)
        _, run = tracked(uri, journal)
        assert (run.info.status, run.data.tags["reason"]) == (status, reason)


def test_what_one_run_can_not_send_keeps_no_other_from_being_sent(
    uri: str, two_ended: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(two_ended, uri)
    send = mirror._client.log_artifacts

    def refuse(run_id: str, folder: str, path: str) -> None:
        if "/trials/0000/" in folder:
            raise OSError("too large")
        send(run_id, folder, path)

    monkeypatch.setattr(mirror._client, "log_artifacts", refuse)
    with pytest.raises(NotSent, match=r"^trial-0000: checkpoints/best and 1 more not sent: OSError: too large"):
        mirror.update(ended=False)
    client, sent = tracked(uri, two_ended, 1)
    assert sent.info.status == "FAILED"
    # All but its checkpoints is there all the same, and what is missing comes with the next attempt, once.
    _, held_up = tracked(uri, two_ended, 0)
    assert (held_up.info.status, len(client.get_metric_history(held_up.info.run_id, "train/loss"))) == ("FAILED", 2)
    assert [artifact.path for artifact in client.list_artifacts(held_up.info.run_id)] == NAMES[1:]
    monkeypatch.setattr(mirror._client, "log_artifacts", send)
    made_up_for = watched(mirror, held_up.info.run_id, monkeypatch)
    for _ in range(2):
        mirror.update(ended=False)
    assert made_up_for == ["log_artifacts", "log_artifacts", "set_tag"]
    assert [artifact.path for artifact in client.list_artifacts(held_up.info.run_id)] == NAMES


def test_a_server_that_is_away_is_not_asked_for_each_run(
    uri: str, journal: Journal, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, propose_run(journal, 1, {}, STUDY.experiment_for({})))
    mirror = Mirror(journal, uri)
    asked: list[str] = []

    def away(*_: Any, **__: Any) -> None:
        asked.append("")
        raise ConnectionError("the server is away")

    for call in ("log_batch", "log_artifact", "search_runs", "get_run"):
        monkeypatch.setattr(mirror._client, call, away)
    with pytest.raises(ConnectionError, match="is away"):
        mirror.update(ended=True)
    assert len(asked) == 2


@contextmanager
def artifact_store(answer: Callable[[str], int]) -> Iterator[str]:
    """A store that answers each upload, by its path, with the status that it is told."""

    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answer(self.path))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts"
    server.shutdown()
    server.server_close()


@pytest.fixture
def slow_store() -> Iterator[str]:
    """An artifact store that takes longer for a file than a server may for a usual answer."""

    def answer(_path: str) -> int:
        time.sleep(2.0)
        return 200

    with artifact_store(answer) as location:
        yield location


def test_a_store_that_refuses_checkpoints_keeps_no_run_from_its_end(tmp_path: Path, journal: Journal) -> None:
    taken: list[str] = []
    limited = [True]

    def answer(path: str) -> int:
        if limited[0] and "/checkpoints/" in path:
            return 413
        taken.append(path)
        return 200

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    end_run(journal, trial_key(0), "complete", "", [0.9, 0.5])
    with artifact_store(answer) as location:
        MlflowClient(tracking_uri=uri).create_experiment(STUDY.tracking.experiment, artifact_location=location)
        why = r"a proxy before it refuses requests of that size \(413\); raise its limit"
        with pytest.raises(NotSent, match=rf"^trial-0000: checkpoints/best and 1 more not sent: {why}$"):
            Mirror(journal, uri).update(ended=True)
        assert tracked(uri, journal)[1].info.status == "FINISHED"
        names = ["study.yaml", "experiment.yaml", "environment.json", "energies.png"]
        assert [path.rpartition("/")[2] for path in taken] == names
        limited[0] = False
        Mirror(Journal(journal.folder), uri).update(ended=True)
        assert {path.split("/")[-2] for path in taken if "/checkpoints/" in path} == {"best", "last"}
        sent = len(taken)
        Mirror(Journal(journal.folder), uri).update(ended=True)
        assert {path.rpartition("/")[2] for path in taken[sent:]} == {"study.yaml"}


def test_an_upload_may_take_longer_than_any_other_request(
    slow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    own = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(tracking_uri=own).create_experiment(Tracking().experiment, artifact_location=slow_store)
    (tmp_path / "file").write_text("content")
    assert said_of_logging(own, tmp_path / "file") == f"MLflow: {own}\n"


def said_of_logging(uri: str, artifact: Path) -> str:
    said = io.StringIO()
    log_folder(
        uri, Console(file=said, width=500), identity="a", kind="lens", name="a", time=0.0, params={}, metrics={},
        artifacts=[artifact],
    )  # fmt: skip
    return said.getvalue()


def test_a_server_that_is_away_costs_a_verb_a_warning(tmp_path: Path) -> None:
    said = said_of_logging("http://127.0.0.1:9", tmp_path)
    assert said.startswith("MLflow has not got it (Connection refused); the same command again sends it")


def test_what_takes_too_long_to_fail_is_tried_last_the_next_time(
    uri: str, two_ended: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(two_ended, uri)
    monkeypatch.setattr("orchestrator.tracking.mirror._PATIENCE_SECONDS", 0.0)

    def refuse(*_: Any) -> None:
        raise OSError("no answer within two minutes")

    monkeypatch.setattr(mirror._client, "log_artifacts", refuse)
    for trial in (0, 1, 0):
        with pytest.raises(NotSent, match=f"^{trial_key(trial)}: checkpoints/best not sent"):
            mirror.update(ended=False)


def test_what_a_later_start_of_a_study_changed_is_a_tag_beside_what_it_was(uri: str, journal: Journal) -> None:
    Mirror(journal, uri).update(ended=False)
    for trials in (7, STUDY.search.trials):
        create_study_folder(
            journal.folder, STUDY.model_copy(update={"search": STUDY.search.model_copy(update={"trials": trials})})
        )
        Mirror(Journal(journal.folder), uri).update(ended=False)
        client, run = tracked(uri, journal)
        parent = client.get_run(run.data.tags["mlflow.parentRunId"]).data
        assert (parent.params["search.trials"], parent.tags["search.trials"]) == ("20", str(trials))


def evaluated(journal: Journal, samples: int) -> None:
    """The trial as an evaluation of so many images leaves it."""
    (run,) = journal.runs()
    protocol = Protocol("digits", "test", samples, "8/255", "pgd20", 0, samples, samples, "best")
    standing = {"clean": (True,) * samples, "pgd20": (True,) * (samples // 2) + (False,) * (samples - samples // 2)}
    flags = Flags(0, samples, standing)
    EvaluationResult(protocol, run.experiment.digest(), EPOCHS - 1, flags).save(run.folder / EVALUATION_FILE)


def test_an_evaluation_that_was_made_again_under_other_settings_takes_the_place_of_the_first(
    uri: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(journal, 16)
    mirror = Mirror(journal, uri)
    mirror.update(ended=False)
    assert "n=16" in tracked(uri, journal)[1].data.tags["protocol"]
    evaluated(journal, 33)
    mirror.update(ended=False)
    client, run = tracked(uri, journal)
    assert "n=33" in run.data.tags["protocol"]
    assert run.data.metrics["test/pgd20_accuracy"] == pytest.approx(16 / 33)
    sent = Path(client.download_artifacts(run.info.run_id, EVALUATION_FILE))
    assert sent.read_text() == (journal.runs()[0].folder / EVALUATION_FILE).read_text()
    # One that has not changed is not sent at every look.
    monkeypatch.setattr(mirror._client, "log_batch", lambda *_, **__: pytest.fail("sent again"))
    mirror.update(ended=False)


def test_an_evaluation_is_sent_by_one_process_and_whole_after_a_crash(
    uri: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(journal, 16)
    end_run(journal, trial_key(0), "complete", "", [0.9, 0.5])
    cut_short = Mirror(journal, uri)

    def die(_run: str, path: str) -> None:
        if path.endswith(EVALUATION_FILE):
            raise KeyboardInterrupt

    monkeypatch.setattr(cut_short._client, "log_artifact", die)
    with pytest.raises(KeyboardInterrupt):
        cut_short.update(ended=False)
    Mirror(Journal(journal.folder), uri).update(ended=False)
    client, run = tracked(uri, journal)
    assert Path(client.download_artifacts(run.info.run_id, EVALUATION_FILE)).exists()
    assert len(client.get_metric_history(run.info.run_id, "test/pgd20_accuracy")) == 1
    # A copy of the study may have files of another age.
    (journal.runs()[0].folder / EVALUATION_FILE).touch()
    again = Mirror(Journal(journal.folder), uri)
    sent = watched(again, run.info.run_id, monkeypatch)
    again.update(ended=False)
    assert sent == []
