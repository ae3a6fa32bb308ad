"""A database server that is frozen while a study waits for its answer: the study says so, and hears Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from orchestrator.records import database_wait
from orchestrator.records.database_wait import DatabaseWait
from orchestrator.records.journal import Journal
from orchestrator.records.storage import open_database
from tests.faults.processes import wait_until
from tests.faults.servers import DatabaseServer
from tests.integration.conftest import run, unmeasured, write_study
from trainers.records import read_records

MAXIMIZE = [optuna.study.StudyDirection.MAXIMIZE]
SILENT = "Optuna's database (search.storage) has been silent for {} seconds; waiting for it, at most 10 minutes"
IMPATIENT = """
from orchestrator.cli import main
from orchestrator.records import database_wait

database_wait._SILENT_SECONDS = 5.0
main()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[DatabaseServer]:
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # where another user may look into it
        database = DatabaseServer(Path(folder))
        database.start()
        yield database
        database.stop()


@pytest.fixture
def frozen(server: DatabaseServer) -> Iterator[DatabaseServer]:
    """To be frozen by a test; it goes on afterwards."""
    yield server
    server.thaw()


def test_an_answer_that_comes_late_is_waited_for_aloud(frozen: DatabaseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_wait, "_SILENT_SECONDS", 0.5)
    heard: list[str] = []

    def say(text: str) -> None:
        heard.append(text)
        frozen.thaw()

    storage = open_database(frozen.url, DatabaseWait(frozen.url, say, lambda: False))
    assert storage.create_new_study(MAXIMIZE, "first") == 1
    frozen.freeze()
    assert storage.create_new_study(MAXIMIZE, "second") == 2
    assert heard == [SILENT.format(0.5), "Optuna's database answers again"]


def test_who_asks_to_stop_meanwhile_is_let_go_and_nothing_waits_again(
    frozen: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_wait, "_SILENT_SECONDS", 0.5)
    heard: list[str] = []
    storage = open_database(frozen.url, DatabaseWait(frozen.url, heard.append, lambda: bool(heard)))
    frozen.freeze()
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(
            ConnectionError, match=r"^search\.storage: .* did not answer for 0\.. minutes: it is silent$"
        ):
            storage.create_new_study(MAXIMIZE, "third")
    storage.engine.dispose()
    assert time.monotonic() - began < 5
    assert heard == [SILENT.format(0.5)]


@pytest.mark.ray
def test_a_study_that_waits_says_so_hears_the_first_ctrl_c_and_goes_on_later(
    frozen: DatabaseServer, tmp_path: Path
) -> None:
    write_study(
        tmp_path,
        search={"trials": 2, "start": None, "storage": frozen.url},
        confirm={"top": 0},
        resources={"concurrent_trials": 1},
        experiment={"epochs": 10},
    )
    said, words = tmp_path / "said.txt", [sys.executable, "-c", IMPATIENT, "sweep", "tiny.yaml"]
    with open(said, "w") as output:
        driver = subprocess.Popen(words, cwd=tmp_path, env=unmeasured(), stdout=output, stderr=subprocess.STDOUT)
    unless = lambda: None if driver.poll() is None else said.read_text()  # noqa: E731
    folder = tmp_path / "runs" / "tiny"
    wait_until(lambda: len(read_records(folder / "trials" / "0000")) > 0, "an epoch", unless=unless)
    frozen.freeze()
    wait_until(lambda: SILENT.format(5) in said.read_text(), "a word of the silence", unless=unless)
    driver.send_signal(signal.SIGINT)
    asked = time.monotonic()
    wait_until(lambda: "stopping after the current epoch" in said.read_text(), "an answer", unless=unless)
    assert time.monotonic() - asked < 5
    driver.wait(timeout=60)
    assert "search.storage: " in said.read_text()
    assert said.read_text().rstrip().endswith("resume with: orchestrator resume runs/tiny")
    assert "Traceback" not in said.read_text()
    frozen.thaw()
    resumed = run("resume", "runs/tiny", cwd=tmp_path, measured=False)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [(run.trial, run.state) for run in Journal(folder).runs()] == [(0, "complete"), (1, "complete")]
