"""Real servers in processes of their own: MLflow, that can be killed and come back, and PostgreSQL, that can freeze."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from orchestrator.host.databases import try_connecting
from tests.faults.processes import descendants, kill, wait_for_the_end_of, wait_until
from tests.integration.conftest import unmeasured


class TrackingServer:
    """One server on one port; its database lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return at once."""
        words = ["--backend-store-uri", f"sqlite:///{self._folder}/server.db", "--workers", "1"]
        words += ["--artifacts-destination", str(self._folder / "artifacts"), "--port", str(self._port)]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", *words],
                env=unmeasured(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true"),
                stdout=log, stderr=log,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        server = self._process
        log = self._folder / "server.log"
        wait_until(self._answers, "MLflow", unless=lambda: None if server.poll() is None else log.read_text())

    def kill(self) -> None:
        """Kill every process of the server; nothing if it does not run."""
        if self._process is None:
            return
        pids = [self._process.pid, *descendants(self._process.pid)]
        for pid in pids:
            kill(pid)
        self._process.wait()
        wait_for_the_end_of(pids)
        self._process = None

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
        except OSError:
            return False
        return True


class DatabaseServer:
    """A real PostgreSQL server on a port of its own, that can be frozen. Skips where none is installed."""

    def __init__(self, folder: Path) -> None:
        found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *map(Path, os.get_exec_path())]
        programs = next((place for place in found if (place / "initdb").exists()), None)
        if programs is None:
            pytest.skip("no PostgreSQL server is installed here")
        # It does not run as root.
        self._user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        self._folder, self._programs, self._port = folder, programs, free_port()
        if self._user:
            shutil.chown(folder, "postgres")
        words = ["--username", "me", "--auth", "trust", "--no-sync", "--pgdata", str(folder / "data")]
        subprocess.run([str(programs / "initdb"), *words], check=True, capture_output=True, cwd=folder, **self._user)
        self.url = f"postgresql+psycopg2://me@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["-D", str(self._folder / "data"), "-p", str(self._port), "-k", str(self._folder)]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), *words], stdout=log, stderr=log, cwd=self._folder, **self._user
            )
        server, log_file = self._process, self._folder / "server.log"
        wait_until(self._answers, "PostgreSQL", unless=lambda: None if server.poll() is None else log_file.read_text())

    def freeze(self) -> None:
        """Stop all its processes where they are: who is connected stays so, and hears nothing."""
        for pid in (self._process.pid, *descendants(self._process.pid)):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in (self._process.pid, *descendants(self._process.pid)):
            os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it, frozen or not."""
        self.thaw()
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            try_connecting(self.url)
        except sqlalchemy.exc.OperationalError:
            return False
        return True


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
