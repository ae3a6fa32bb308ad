"""The stack of docker/compose.yaml, really started, under a project name and on ports of its own."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.faults.processes import wait_until

DOCKER = Path(__file__).parents[2] / "docker"
SECRETS = ("ray_token", "database_password")


class Stack:
    """One project of compose; everything that it makes is gone after `down`."""

    def __init__(self, folder: Path) -> None:
        self.secrets = {name: secrets.token_hex(32) for name in SECRETS}
        for name, content in self.secrets.items():
            (folder / name).write_text(content)
            (folder / name).chmod(0o444)
        self.project = f"orchestrator-test-{os.getpid()}"
        self.dashboard, self.mlflow = _free_port(), _free_port()
        self._environment = os.environ | {
            "SECRETS": str(folder), "DASHBOARD_PORT": str(self.dashboard), "MLFLOW_PORT": str(self.mlflow),
        }  # fmt: skip

    def up(self) -> None:
        """Start everything and wait until it is healthy.

        Twice, if need be: on a busy machine a worker may not find the head within Ray's 30 seconds; its restart policy
        starts it again, but compose gives up waiting at a restart.
        """
        words = ("up", "--detach", "--wait", "--wait-timeout", "300")
        if subprocess.run(self.command(*words), cwd=DOCKER, env=self._environment, capture_output=True).returncode:
            self(*words)

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self("--profile", "study", "down", "--volumes", "--remove-orphans", "--timeout", "5")

    def __call__(self, *words: str) -> str:
        """`docker compose WORDS`: what it wrote to stdout. Fails with everything that it said."""
        done = subprocess.run(
            self.command(*words), cwd=DOCKER, env=self._environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"docker compose {' '.join(words)}:\n{done.stdout}{done.stderr}{self._state()}"
        return done.stdout

    def start(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """The same in the background, its output in `log`."""
        with open(log, "wb") as file:
            return subprocess.Popen(self.command(*words), cwd=DOCKER, env=self._environment, stdout=file, stderr=file)

    def command(self, *words: str) -> list[str]:
        return ["docker", "compose", "--project-name", self.project, *words]

    def inside(self, service: str, script: str, *, index: int = 1) -> str:
        """What a shell prints in the running container of a service."""
        return self("exec", "--no-TTY", "--index", str(index), service, "sh", "-c", script)

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers."""
        return self("ps", "--all", "--quiet", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """Everything the engine knows about a container."""
        return json.loads(subprocess.check_output(["docker", "inspect", container]))[0]

    def crash_when(self, container: str, condition: str) -> None:
        """Kill every process in a container at once, as soon as a condition of the shell holds in it.

        Unlike `docker kill` that is a crash, which the restart policy mends. Returns when it has.
        """
        restarts = self.inspect(container)["RestartCount"]
        script = f"until {condition}; do sleep 0.1; done; kill -9 -1"
        subprocess.run(["docker", "exec", "--detach", container, "sh", "-c", script], check=True)
        wait_until(lambda: self.inspect(container)["RestartCount"] > restarts, "a restart by the policy")

    def query(self, sql: str) -> list[list[str]]:
        """Rows of MLflow's database, as text."""
        rows = self("exec", "--no-TTY", "postgres", "psql", "--username=mlflow", "--csv", "--tuples-only", "-c", sql)
        return [line.split(",") for line in rows.splitlines()]

    def _state(self) -> str:
        words = [["ps", "--all"], ["logs", "--no-color", "--tail", "8"]]
        return "".join(subprocess.run(self.command(*w), cwd=DOCKER, env=self._environment,
                                      capture_output=True, text=True).stdout for w in words)  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
