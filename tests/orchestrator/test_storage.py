"""Optuna's storage is a file in the study's folder, or a database of the user's own, tried before anything runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import optuna
import pytest

from orchestrator.records import database_wait
from orchestrator.records.database_wait import DatabaseWait
from orchestrator.records.storage import check_is_ours, explained, open_database, storage_url
from orchestrator.records.study_folder import STUDY_FILE, create_study_folder, open_study_folder, read_study
from orchestrator.report.page import write_report
from orchestrator.study.preflight import preflight
from orchestrator.study.proposals import open_storage
from search_spaces.study import Study, parse_study
from tests.integration.conftest import STUDY, Command, answer, write_study
from tests.orchestrator import made_up
from trainers.problems import InvalidInput

__all__ = ["answer"]


def study(storage: str | None) -> Study:
    return parse_study({**STUDY, "search": {"storage": storage}})


def test_by_default_it_is_a_file_in_the_study_folder(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", study(None))
    assert storage_url(read_study(journal.folder), journal.folder) == f"sqlite:///{tmp_path}/s/optuna.db"
    check_is_ours(study(None), None, ())
    assert not (tmp_path / "s" / "optuna.db").exists()


def test_a_file_of_the_users_own_is_the_same_one_wherever_the_study_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    journal = create_study_folder(tmp_path / "s", study("sqlite:///mine.db"))
    monkeypatch.chdir("/")
    assert storage_url(read_study(journal.folder), journal.folder) == f"sqlite:///{tmp_path}/mine.db"
    check_is_ours(read_study(journal.folder), None, ())
    assert optuna.study.get_all_study_names(storage_url(read_study(journal.folder), journal.folder)) == []


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////nowhere/at/all.db", "nosuchdb://host/db"])
def test_one_that_cannot_be_opened_is_named_before_anything_starts(
    storage: str, answer: Command, tmp_path: Path
) -> None:
    write_study(tmp_path, search={"storage": storage})
    result = answer("sweep", "tiny.yaml")
    assert result.returncode == 2
    assert f"search.storage: {storage!r} can't be opened" in result.stderr
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.parametrize(
    "words",
    [("sweep",), ("sweep", "--dry-run"), ("validate",), ("submit", "--storage", "/s", "--address", "http://h:8265")],
)
def test_a_password_in_it_is_neither_taken_nor_repeated(
    words: tuple[str, ...], answer: Command, tmp_path: Path
) -> None:
    write_study(tmp_path, search={"storage": "postgresql://me:a#planted@host/db"})
    result = answer(words[0], "tiny.yaml", *words[1:])
    assert result.returncode == 2
    assert "search.storage: has a password in it" in result.stderr
    assert "planted" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ("postgresql+psycopg2://me@127.0.0.1:1/db", "port 1 failed: Connection refused."),
        ("mysql+nosuchdriver://me@127.0.0.1:1/db", "mysql.nosuchdriver."),
    ],
)
def test_one_that_is_away_or_has_no_driver_here_costs_a_report_one_plate(
    storage: str, why: str, tmp_path: Path
) -> None:
    folder = made_up.write_study(tmp_path)
    assert write_report(open_study_folder(folder)).read_text().count("<figure") == 4
    before = {file.name for file in (folder / "figures").iterdir()}
    raw = made_up.made_up_study().to_raw()
    (folder / STUDY_FILE).write_text(parse_study(raw | {"search": raw["search"] | {"storage": storage}}).to_yaml())
    page = write_report(open_study_folder(folder)).read_text()
    assert page.count("<figure") == 3
    assert "Optuna's storage (search.storage) can't be read: " in page
    assert why in page
    after = {file.name for file in (folder / "figures").iterdir()}
    assert before - after == {"parameter_importance.svg", "parameter_importance.csv"}


@pytest.mark.parametrize(
    ("storage", "what"), [("postgres://me@host/db", "allowed: "), ("mssql+pymssql://me@host/db", "installed here: ")]
)
def test_an_address_of_no_database_or_driver_says_what_may_be_written(storage: str, what: str) -> None:
    with pytest.raises(InvalidInput, match=r"search\.storage: .* can't be opened: .*" + what + r"postgresql\+psycopg2"):
        check_is_ours(study(storage), None, ())


def test_a_connection_that_the_server_has_closed_is_made_anew_without_a_word(tmp_path: Path) -> None:
    said: list[str] = []
    url = f"sqlite:///{tmp_path}/mine.db"
    storage = open_database(url, DatabaseWait(url, said.append, lambda: False))
    closed = storage.engine.raw_connection()
    closed.driver_connection.close()
    closed.close()
    assert storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s") == 1
    assert said == []


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an open database was; it comes back when it is put there again."""
    monkeypatch.setattr(database_wait, "_RETRY_SECONDS", 0.02)
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_a_database_that_goes_away_is_waited_for_aloud(away: Path) -> None:
    heard: list[str] = []

    def say(text: str) -> None:
        heard.append(text)
        if "is away" in text:
            away.with_name("there").rename(away)

    url = f"sqlite:///{away}/mine.db"
    storage = open_database(url, DatabaseWait(url, say, lambda: False))
    storage.engine.dispose()
    away.rename(away.with_name("there"))
    assert storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s") == 1
    assert heard == [
        "Optuna's database (search.storage) is away: unable to open database file; waiting for it, at most 10 minutes",
        "Optuna's database answers again",
    ]


def test_one_that_stays_away_ends_the_study_with_its_name(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_wait, "PATIENCE_SECONDS", 0.1)
    url = f"sqlite:///{away}/mine.db"
    storage = open_database(url, DatabaseWait(url, lambda _: None, lambda: False))
    storage.engine.dispose()
    away.rename(away.with_name("there"))
    with pytest.raises(ConnectionError, match=r"search\.storage: .*mine\.db' did not answer for .* minutes: unable"):
        storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")


def test_what_breaks_in_the_middle_of_a_call_is_no_internal_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mine.db"
    storage = open_database(url)
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("drop table studies")
    failing = partial(storage.create_new_study, [optuna.study.StudyDirection.MAXIMIZE], "s")
    with pytest.raises(ConnectionError, match=r"search\.storage: .* failed: .*no such table"), explained(study(url)):
        failing()
    with pytest.raises(optuna.exceptions.StorageInternalError), explained(study(None)):
        failing()


def ended_elsewhere(url: str, trials: int) -> None:
    """What the database holds of the study when `one` has run so many trials."""
    opened = open_storage(study(url), url, "one", None)
    for number in range(trials):
        opened.ask()
        opened.tell(number, [0.5, 0.5])


def test_a_study_of_another_folder_is_refused_before_anything_is_written(answer: Command, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mine.db"
    ended_elsewhere(url, 0)
    write_study(tmp_path, search={"storage": url})
    result = answer("sweep", "tiny.yaml")
    assert result.returncode == 2
    assert f"search.storage: {url!r} holds a study 'tiny' of another folder" in result.stderr
    assert f"optuna --storage {url} delete-study --study-name tiny" in result.stderr
    assert "resume with" not in result.stdout + result.stderr
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_copy_of_a_folder_from_before_some_results_does_not_go_on_without_them(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mine.db"
    ended_elsewhere(url, 3)
    check_is_ours(study(url), "one", {0, 1, 2})
    with pytest.raises(InvalidInput, match=r"search\.storage: .* 2 trials of 'tiny' that this folder lacks .* trial 1"):
        check_is_ours(study(url), "one", {0})


def test_results_are_confirmed_while_the_database_is_away(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nowhere/mine.db"
    create_study_folder(tmp_path / "tiny", study(url))
    with pytest.raises(InvalidInput, match="can't be opened"):
        preflight(study(url), tmp_path / "tiny", None, True, say=print)
    preflight(study(url), tmp_path / "tiny", None, False, say=print)
