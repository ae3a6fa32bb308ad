"""What a study says while MLflow does not take what it is sent, and that its end does not hang on it in silence."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.host.interrupt import Interrupt, listening
from orchestrator.records.journal import Journal
from orchestrator.records.study_folder import create_study_folder, read_study
from orchestrator.tracking import tracker
from orchestrator.tracking.mirror import sync
from orchestrator.tracking.tracker import Tracker
from search_spaces.study import parse_study

WAITING = "waiting for MLflow to take what is left; Ctrl-C leaves it for later"


class Server:
    """Takes updates, refuses them, or is silent."""

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.updates = 0
        self.answers = threading.Event()
        self.answers.set()

    def update(self, *, ended: bool) -> None:
        self.answers.wait(30)
        self.updates += 1
        if self.problem is not None:
            raise self.problem

    def after(self, updates: int) -> None:
        wanted, until = self.updates + updates, time.monotonic() + 10
        while self.updates < wanted:
            assert time.monotonic() < until
            time.sleep(0.005)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setattr(tracker, "Mirror", lambda *_: server)
    for seconds in ("_INTERVAL_SECONDS", "_RETRY_SECONDS", "_SILENT_SECONDS", "_LOOK_SECONDS"):
        monkeypatch.setattr(tracker, seconds, 0.02)
    yield server
    server.answers.set()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return create_study_folder(tmp_path / "s", parse_study({"name": "s"}))


def test_an_outage_that_lasts_is_told_once_and_so_is_its_end(server: Server, journal: Journal) -> None:
    said: list[str] = []
    with Tracker(journal, "", said.append, Interrupt(said.append)) as tracker:
        tracker.start()
        server.after(2)
        assert said == []
        server.problem = ConnectionRefusedError(111, "Connection refused")
        server.after(5)
        assert len(said) == 1
        assert said[0].startswith("MLflow does not take what it is sent (Connection refused); the study goes on")
        server.problem = None
        server.after(3)
    assert said[1:] == ["MLflow is up to date again"]
    assert tracker.behind is None


def test_an_outage_at_the_end_is_what_the_study_ends_with(server: Server, journal: Journal) -> None:
    said: list[str] = []
    with Tracker(journal, "", said.append, Interrupt(said.append)) as tracker:
        tracker.start()
        server.after(1)
        server.problem = ConnectionRefusedError(111, "Connection refused")
    assert (said, tracker.behind) == ([], "Connection refused")


def test_a_study_whose_ray_does_not_start_is_tracked_at_its_end_if_it_has_runs(
    server: Server, journal: Journal
) -> None:
    for runs in (0, 1):
        if runs:
            journal.propose(0, {}, read_study(journal.folder).experiment_for({}), folder=journal.trial_folder(0))
        with Tracker(journal, "", pytest.fail, Interrupt(pytest.fail)):
            time.sleep(0.1)
            assert server.updates == 0
        assert server.updates == runs


@pytest.mark.parametrize("interrupted_before", [False, True])
def test_the_end_waits_aloud_and_ctrl_c_leaves_it_for_later(
    interrupted_before: bool, server: Server, journal: Journal
) -> None:
    said: list[str] = []

    def hear(text: str) -> None:
        said.append(text)
        if text == WAITING:
            os.kill(os.getpid(), signal.SIGINT)

    with listening(lambda _: None) as interrupt:
        if interrupted_before:
            interrupt.receive(signal.SIGINT, None)
        with Tracker(journal, "", hear, interrupt) as tracker:
            tracker.start()
            server.after(1)
            server.answers.clear()
            time.sleep(0.1)
    assert said == [WAITING]
    assert tracker.behind == "it takes long to answer"


def test_who_stops_at_once_does_not_wait_for_mlflow(server: Server, journal: Journal) -> None:
    said: list[str] = []

    def stop_at_once() -> None:
        with Tracker(journal, "", said.append, Interrupt(said.append)) as tracker:
            tracker.start()
            server.after(1)
            server.answers.clear()
            time.sleep(0.1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_at_once()
    assert said == []


def test_a_server_that_is_away_is_no_internal_error_of_sync(journal: Journal) -> None:
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1 is not up to date: Connection refused; the journal"):
        sync(journal, "http://127.0.0.1:1")
