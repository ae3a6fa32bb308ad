"""Machines made of network namespaces: each has its own address, its own link to a switch, and a Ray node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.processes import descendants, kill, wait_for_the_end_of, wait_until
from tests.integration.conftest import unmeasured

GCS_PORT, DASHBOARD_PORT = 6379, 8265
DEATH_SECONDS = 3  # how long a node may be silent before the head declares it dead

# Read by a node when it starts.
_SETTINGS = {
    "RAY_raylet_start_wait_time_s": "120",  # the machine may be busy
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": str(DEATH_SECONDS),
}


def why_not() -> str | None:
    """What keeps this machine from having network namespaces, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"orc{os.getpid()}-probe"
    try:
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    except FileNotFoundError:
        return "network namespaces need iproute2 (the command ip)"
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


class Machine:
    """One namespace. The first one is the head; a Ray node can run, be killed and come back on each."""

    def __init__(self, folder: Path, index: int, cpus: int) -> None:
        self.name = f"orc{os.getpid()}-{index}"
        self.address = f"10.77.0.{10 + index}"
        self._folder, self._index, self._cpus = folder, index, cpus
        self._node: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        """These words, executed on this machine."""
        return ["ip", "netns", "exec", self.name, *words]

    def environment(self, **extra: str) -> dict[str, str]:
        """What a user's shell on this machine holds."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._folder / "token")}
        # Short: Ray puts Unix sockets below it, whose paths are limited to 107 bytes.
        return unmeasured(OMP_NUM_THREADS="1", RAY_TMPDIR=str(self._temporary), **token, **_SETTINGS, **extra)

    @property
    def _temporary(self) -> Path:
        return self._folder / f"n{self._index}"

    @property
    def _log(self) -> Path:
        return self._folder / f"node{self._index}.log"

    def start(self) -> None:
        """`ray start`, as a supervisor runs it."""
        self._temporary.mkdir(exist_ok=True)
        if self._index == 1:
            words = ["--head", "--port", str(GCS_PORT), "--dashboard-host", self.address]
            words += ["--dashboard-port", str(DASHBOARD_PORT), "--ray-client-server-port", "10001"]
        else:
            words = ["--address", f"{HEAD_ADDRESS}:{GCS_PORT}"]
        words += ["--disable-usage-stats", "--temp-dir", str(self._temporary)]
        words += ["--node-ip-address", self.address, "--num-cpus", str(self._cpus), "--object-store-memory", "80000000"]
        ray = str(Path(sys.executable).with_name("ray"))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with open(self._log, "wb") as log:
            self._node = subprocess.Popen(
                self.command(ray, "start", "--block", *words),
                env=self.environment(PATH=path), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Until its Ray node runs."""
        node = self._running
        wait_until(
            lambda: "Ray runtime started" in self._log.read_text(),
            f"Ray on {self.name}",
            unless=lambda: None if node.poll() is None else self._log.read_text(),
        )

    def kill_raylet(self) -> None:
        """As when the machine is taken away: the node's daemon dies, and with it everything that it had started."""
        below = descendants(self._running.pid)
        kill(next(pid for pid, line in below.items() if "/raylet/raylet " in line))
        self.wait_for_the_end()
        wait_for_the_end_of(below)

    def wait_for_the_end(self) -> None:
        """Until `ray start` has given up."""
        node = self._running
        wait_until(lambda: node.poll() is not None, f"the end of Ray on {self.name}")

    def stop(self) -> None:
        """Kill whatever runs of the Ray node."""
        if self._node is not None:
            pids = [self._node.pid, *descendants(self._node.pid)]
            for pid in pids:
                kill(pid)
            self._node.wait()
            wait_for_the_end_of(pids)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._node is not None
        return self._node


HEAD_ADDRESS = "10.77.0.11"


class Network:
    """A switch, a head without CPUs of its own, and workers of one CPU each."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._switch = f"orc{os.getpid()}-switch"
        self.machines = [Machine(folder, index + 1, cpus=min(index, 1)) for index in range(workers + 1)]
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())

    @property
    def head(self) -> Machine:
        """The machine of the head node and of the driver."""
        return self.machines[0]

    @property
    def workers(self) -> list[Machine]:
        """The others."""
        return self.machines[1:]

    def __enter__(self) -> Network:
        try:
            self._build()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for machine in reversed(self.machines):
            machine.stop()
        for name in (*(machine.name for machine in self.machines), self._switch):
            with suppress(subprocess.CalledProcessError):  # it was not made
                _ip("netns", "delete", name)

    def _build(self) -> None:
        # The switch is a namespace as well: nobody's firewall rules for bridges apply in it.
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for machine in self.machines:
            port = _port(machine)
            _ip("netns", "add", machine.name)
            _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
            _ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", machine.name, "link", "set", "eth0", "up")
            _ip("-n", machine.name, "link", "set", "lo", "up")

    def _start(self) -> None:
        self.head.start()
        self.head.wait()
        for worker in self.workers:
            worker.start()
        for worker in self.workers:
            worker.wait()

    @contextmanager
    def cut(self, machine: Machine) -> Iterator[None]:
        """Inside the block nothing reaches this machine, and nothing leaves it."""
        _ip("-n", self._switch, "link", "set", _port(machine), "down")
        try:
            yield
        finally:
            _ip("-n", self._switch, "link", "set", _port(machine), "up")


def silence(seconds: float) -> None:
    """Let a fault last."""
    time.sleep(seconds)


def _port(machine: Machine) -> str:
    return f"port{machine.address.rpartition('.')[2]}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
