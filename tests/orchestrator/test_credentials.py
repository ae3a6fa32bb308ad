"""What counts as a credential, and that it is withheld and given back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from orchestrator.host.credentials import credentials, refuse_password, withheld
from trainers.problems import InvalidInput


def test_processes_started_inside_inherit_none_and_the_driver_keeps_its_own(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "here")
    monkeypatch.setenv("PGPASSWORD", "planted too")
    monkeypatch.setenv("DATABRICKS_TOKEN", "planted as well")
    monkeypatch.setenv("DATABRICKS_HOST", "https://workspace")
    assert credentials() == {
        "DATABRICKS_TOKEN": "planted as well", "MLFLOW_TRACKING_TOKEN": "planted", "PGPASSWORD": "planted too"
    }  # fmt: skip
    with withheld():
        seen = subprocess.run(
            [sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True, text=True
        )
    assert "planted" not in seen.stdout
    assert "http://127.0.0.1:5000" in seen.stdout
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "planted"


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:secret@host/path",
        "postgresql://me:secret@host/db",
        "postgresql://host/db?password=secret",
        "postgresql://me:a#secret@host/db",
        "mysql://me:a?secret@host/db",
        "postgresql://me:a[secret@host/db",
        "postgresql://me:a/secret@host/db",
        "postgresql://:secret@host/db",
        "postgresql://me:1@secret@host/db",
    ],
)
def test_an_address_with_a_password_is_refused_without_repeating_it(uri):
    with pytest.raises(InvalidInput) as caught:
        refuse_password(uri, "search.storage")
    assert "search.storage" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "https://host",
        "postgresql://me@host/db",
        "sqlite:////a/b:c@d.db",
        "http://[broken",
        "http://host:5000/a@b",
        "http://[::1]:5000/a@b",
    ],
)
def test_other_addresses_are_none_of_its_business(uri):
    refuse_password(uri, "tracking.uri")
