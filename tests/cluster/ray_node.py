"""A Ray node of `ray start`, as somebody else started it: with a token, and a supervisor that may start it again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.faults.processes import descendants, kill, wait_for_the_end_of, wait_until
from tests.integration.conftest import unmeasured

# What runs a node in earnest starts it again when it ends.
_SUPERVISOR = 'while true; do "$0" "$@"; sleep 1; done'


def make_token(folder: Path) -> Path:
    """The secret of a cluster, in a file that only its owner reads."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(os.urandom(32).hex())
    return token


class RayNode:
    """One node. `words` are those of `ray start`; `prefix` is what the command is executed under.

    `folder` is this node's own; its path is short, for Ray puts Unix sockets into it (limit: 107 bytes).
    """

    def __init__(self, folder: Path, token: Path, words: Sequence[str], prefix: Sequence[str] = ()) -> None:
        folder.mkdir()
        self._folder, self._token, self._words, self._prefix = folder, token, words, prefix
        self._log = folder / "start.log"
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, **extra: str) -> dict[str, str]:
        """What a user's shell on this node holds."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)}
        return unmeasured(OMP_NUM_THREADS="1", RAY_TMPDIR=str(self._folder), **token, **extra)

    def start(self, *under: str, **extra: str) -> None:
        """Run `ray start` again and again, under another command and with more variables in its environment."""
        binaries = Path(sys.executable).parent
        waits = {"RAY_raylet_start_wait_time_s": "120"}  # the machine may be busy
        path = f"{binaries}:{os.environ['PATH']}"
        ray = ["sh", "-c", _SUPERVISOR, str(binaries / "ray"), "start", "--block"]
        words = ["--disable-usage-stats", "--object-store-memory", "80000000"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*self._prefix, *under, *ray, *words, "--temp-dir", str(self._folder), *self._words],
                env=self.environment(PATH=path, **waits, **extra), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it runs."""
        process = self._running
        wait_until(
            lambda: "Ray runtime started" in self._log.read_text(),
            "a Ray node",
            unless=lambda: None if process.poll() is None else self._log.read_text(),
        )

    def runs(self, *titles: str) -> bool:
        """Whether a process with one of these titles runs on it."""
        return any(line.startswith(titles) for line in descendants(self._running.pid).values())

    def kill_raylet(self) -> None:
        """As when the machine fails: the node's daemon dies, and with it everything that it had started."""
        kill(next(pid for pid, line in descendants(self._running.pid).items() if "/raylet/raylet " in line))

    def stop(self) -> None:
        """Kill whatever runs of it."""
        if self._process is not None:
            below = descendants(self._process.pid)
            self._process.kill()
            self._process.wait()
            for pid in below:
                with suppress(ProcessLookupError):  # it has ended by itself
                    kill(pid)
            wait_for_the_end_of(below)
            self._process = None

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process
