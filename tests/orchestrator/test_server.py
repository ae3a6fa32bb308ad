"""What an MLflow server is asked before a study begins, and what is said of one that answers wrongly or not at all."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.server import check_reachable, connected, outage, tracking_uri, uri_of_no_study
from search_spaces.study import parse_study
from trainers.problems import InvalidInput


class _Elsewhere(BaseHTTPRequestHandler):
    """Something that answers every request with the status in its path."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (200, r"what answers there is not MLflow \(200\)$"),
        (404, r"what answers there is not MLflow \(404\)$"),
        (413, r"a proxy before it refuses requests of that size \(413\)"),
        (429, "it answers with error 429; its log says why$"),
        (500, "it answers with error 500; its log says why$"),
        (401, r"refuses us \(401\); set MLFLOW_TRACKING_"),
    ],
)
def test_what_answers_and_takes_no_runs_is_no_place_to_begin_a_study(status: int, why: str, elsewhere: str) -> None:
    with pytest.raises(InvalidInput, match=rf"tracking\.uri: '{elsewhere}/{status}': .*{why}"):
        check_reachable(f"{elsewhere}/{status}")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("postgresql+psycopg2://me@127.0.0.1:1/mlflow", "Connection refused"),
        ("mssql+pymssql://me@127.0.0.1:1/mlflow", "install it, or name a driver that is installed"),
    ],
)
def test_a_database_that_is_away_is_told_within_seconds(address: str, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidInput, match=rf"tracking\.uri: .* can't be opened: .*{why}"):
        check_reachable(address)
    assert time.monotonic() - began < 10


def test_an_experiment_that_was_deleted_is_told_before_anything_starts(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    check_reachable(uri, "gone")
    assert not (tmp_path / "mlflow.db").exists()
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(InvalidInput, match=r"tracking\.experiment: 'gone' has been deleted .* restore --exp"):
        check_reachable(uri, "gone")
    check_reachable(uri, "another")


def test_a_study_is_tracked_in_the_same_file_from_wherever_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study, own = (parse_study({"name": "s", "tracking": {"uri": uri}}) for uri in (None, "http://mlflow:5000"))
    monkeypatch.chdir(tmp_path)
    begun = tracking_uri(study, Path("runs"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tracking_uri(study, tmp_path / "runs") == begun == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert uri_of_no_study() == f"sqlite:///{tmp_path}/elsewhere/runs/mlflow.db"
    check_reachable(uri_of_no_study())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert [tracking_uri(one, Path("runs")) for one in (study, own)] == ["http://other:5000", "http://mlflow:5000"]
    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    assert uri_of_no_study() == "http://other:5000"
    assert not list(tmp_path.joinpath("third").iterdir())  # no folder for a file that is not used


def test_a_client_that_gave_up_says_what_lay_under_it() -> None:
    client = connected("http://127.0.0.1:1")
    with pytest.raises(Exception, match="Max retries exceeded") as raised:
        client.get_run("0")
    assert outage(raised.value) == "Connection refused"


def test_a_server_that_is_silent_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = connected(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Exception, match="timed out") as raised:
            client.get_run("0")
    assert outage(raised.value) == "it does not answer in time"


def test_a_database_that_fails_prints_no_stack_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = connected(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_experiment("a")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("ALTER TABLE experiments RENAME TO elsewhere")
    with pytest.raises(Exception, match="no such table"):
        client.get_experiment_by_name("a")
    assert capsys.readouterr().err == ""
