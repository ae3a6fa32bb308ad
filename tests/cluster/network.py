"""Machines made of network namespaces: each has its own address, its own link to a switch, and a Ray node."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.ray_node import RayNode, make_token

HEAD_ADDRESS, GCS_PORT, DASHBOARD_PORT = "10.77.0.11", 6379, 8265
DEATH_SECONDS = 6  # how long a node may be silent before the head declares it dead
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": str(DEATH_SECONDS),
}


def why_not() -> str | None:
    """What keeps this machine from having network namespaces, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        _ip("netns", "add", f"orc{os.getpid()}-probe")
    except FileNotFoundError:
        return "network namespaces need iproute2 (the command ip)"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted here: {error.stderr.strip()}"
    _ip("netns", "delete", f"orc{os.getpid()}-probe")
    return None


class Machine(RayNode):
    """A namespace with a Ray node. The first one is the head and has no CPUs to give, the others have one each."""

    def __init__(self, folder: Path, token: Path, index: int) -> None:
        self.name = f"orc{os.getpid()}-{index}"
        self.address = f"10.77.0.{10 + index}"
        self.port = f"port{index}"
        words = ["--node-ip-address", self.address, "--num-cpus", str(min(index - 1, 1))]
        if index == 1:
            words += ["--head", "--port", str(GCS_PORT)]
            words += ["--dashboard-host", self.address, "--dashboard-port", str(DASHBOARD_PORT)]
        else:
            words += ["--address", f"{HEAD_ADDRESS}:{GCS_PORT}"]
        super().__init__(folder / f"n{index}", token, words, prefix=self.command())

    def command(self, *words: str) -> list[str]:
        """These words, executed on this machine."""
        return ["ip", "netns", "exec", self.name, *words]


class Network:
    """A switch, a head and workers."""

    def __init__(self, folder: Path, workers: int) -> None:
        token = make_token(folder)
        self._switch = f"orc{os.getpid()}-switch"
        self.head, *self.workers = (Machine(folder, token, index + 1) for index in range(workers + 1))

    def __enter__(self) -> Network:
        try:
            self._build()
            self.head.start(**_HEALTH)
            self.head.wait()
            for worker in self.workers:
                worker.start()
            for worker in self.workers:
                worker.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for machine in (*self.workers, self.head):
            machine.stop()
        for name in (*(machine.name for machine in (*self.workers, self.head)), self._switch):
            with suppress(subprocess.CalledProcessError):  # it was not made
                _ip("netns", "delete", name)

    @contextmanager
    def cut(self, machine: Machine) -> Iterator[None]:
        """Inside the block nothing reaches this machine, and nothing leaves it."""
        _ip("-n", self._switch, "link", "set", machine.port, "down")
        try:
            yield
        finally:
            _ip("-n", self._switch, "link", "set", machine.port, "up")

    def _build(self) -> None:
        # The switch is a namespace as well: nobody's firewall rules for bridges apply in it.
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for machine in (self.head, *self.workers):
            pair = [machine.port, "type", "veth", "peer", "name", "eth0", "netns", machine.name]
            _ip("netns", "add", machine.name)
            _ip("-n", self._switch, "link", "add", *pair)
            _ip("-n", self._switch, "link", "set", machine.port, "master", "switch", "up")
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", machine.name, "link", "set", "eth0", "up")
            _ip("-n", machine.name, "link", "set", "lo", "up")


def silence(seconds: float) -> None:
    """Let a fault last."""
    time.sleep(seconds)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
