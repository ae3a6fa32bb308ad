"""A real MLflow server in a process of its own, that can be killed and come back with what it knew."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.faults.processes import descendants, kill, wait_for_the_end_of, wait_until
from tests.integration.conftest import unmeasured


class TrackingServer:
    """One server on one port; its database lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
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
