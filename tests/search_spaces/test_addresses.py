"""Addresses of databases: a file is where SQLAlchemy opens it, however its path is written."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from search_spaces.addresses import absolute_file, sqlite_address, sqlite_file


@pytest.mark.parametrize("name", ["plain", "a b", "a%20b", "feature%2Fx", "100%", "a?b", "a#b+c", "[x] ε"])
def test_a_database_is_in_the_file_that_its_address_was_made_of(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "x.db"
    file.parent.mkdir()
    address = sqlite_address(file)
    with create_engine(address).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    assert sqlite3.connect(file).execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert sqlite_file(address) == file
    assert absolute_file(address) == address


def test_a_relative_file_becomes_absolute_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = make_url(absolute_file("sqlite:///a%20b.db?timeout=3"))
    assert (absolute.database, absolute.query) == (f"{tmp_path}/a b.db", {"timeout": "3"})
    assert absolute_file("postgresql://host/name") == "postgresql://host/name"
    assert sqlite_file("postgresql://host/name") is None
