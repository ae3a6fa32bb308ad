"""Skips only where it may: `make test-cluster` shows something or fails, unless ALLOW_SKIP=1 says otherwise."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.network import Network, why_not
from tests.faults.conftest import injections, pytest_terminal_summary

__all__ = ["injections", "pytest_terminal_summary"]


def pytest_sessionstart(session: pytest.Session) -> None:
    reason = why_not()
    if reason is not None:
        allowed = os.environ.get("ALLOW_SKIP") == "1"
        hint = "" if allowed else " (ALLOW_SKIP=1 skips these tests)"
        pytest.exit(f"tests/cluster: {reason}{hint}", returncode=0 if allowed else 1)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A head and two workers, for the tests of one file."""
    with tempfile.TemporaryDirectory(prefix="orc") as folder, Network(Path(folder), workers=2) as network:
        yield network
