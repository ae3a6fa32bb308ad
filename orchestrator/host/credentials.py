"""Credentials stay with the driver: they are in its environment, and in nothing that it starts, writes or prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from search_spaces.addresses import REFUSAL, has_password
from trainers.problems import InvalidInput

# MLflow's own, and those of the artifact stores that it knows.
_PREFIXES = ("AWS_", "AZURE_", "DATABRICKS_", "GOOGLE_APPLICATION_", "MLFLOW_TRACKING_")
_DATABASES = ("PGPASSWORD", "MYSQL_PWD")
_SECRETS = ("KEY", "SECRET", "TOKEN", "PASSWORD", "USERNAME", "CREDENTIALS", "CLIENT_CERT", "CONNECTION_STRING")


def credentials() -> dict[str, str]:
    """The variables of this process's environment that hold credentials."""
    named = (name for name in os.environ if name.startswith(_PREFIXES) and any(word in name for word in _SECRETS))
    return {name: os.environ[name] for name in (*named, *_DATABASES) if name in os.environ}


@contextmanager
def withheld() -> Iterator[None]:
    """Processes that are started inside inherit no credentials."""
    held = credentials()
    for name in held:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(held)


def refuse_password(uri: str, field: str) -> None:
    """Raise InvalidInput, without repeating it, for an address with a password in it."""
    if has_password(uri):
        raise InvalidInput.single(field, REFUSAL)
