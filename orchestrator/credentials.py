"""Credentials stay with the driver: they are in its environment, and in nothing that it starts, writes or prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from trainers.problems import InvalidInput

# MLflow's own, and those of the artifact stores that it knows.
_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_APPLICATION_", "MLFLOW_TRACKING_")
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
    """Raise InvalidInput for an address with a password in it: it would end up in files and logs."""
    try:
        parts = urlsplit(uri)
        password = parts.password or any("pass" in key.lower() for key in parse_qs(parts.query))
    except ValueError:
        return  # not an address at all; whoever opens it says so
    if password:
        raise InvalidInput.single(
            field,
            "has a password in it, which would be written into the study; give it in the environment instead "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PGPASSWORD or MYSQL_PWD)",
        )
