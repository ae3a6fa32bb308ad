"""Machines made of network namespaces: each has its own address, its own link to a switch, and a Ray node."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Host:
    """A namespace with an address of its own."""

    index: int

    @property
    def name(self) -> str:
        return f"orc{os.getpid()}-{self.index}"

    @property
    def address(self) -> str:
        return f"10.77.0.{10 + self.index}"

    @property
    def port(self) -> str:
        return f"port{self.index}"

    def command(self, *words: str) -> list[str]:
        """These words, executed on this host."""
        return ["ip", "netns", "exec", self.name, *words]


class Switch:
    """Hosts that reach one another."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._name = f"orc{os.getpid()}-switch"

    def connect(self) -> None:
        """Make the hosts and their links."""
        # The switch is a namespace as well: nobody's firewall rules for bridges apply in it.
        _ip("netns", "add", self._name)
        _ip("-n", self._name, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._name, "link", "set", "switch", "up")
        for host in self._hosts:
            pair = [host.port, "type", "veth", "peer", "name", "eth0", "netns", host.name]
            _ip("netns", "add", host.name)
            _ip("-n", self._name, "link", "add", *pair)
            _ip("-n", self._name, "link", "set", host.port, "master", "switch", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")

    def remove(self) -> None:
        """What was made of it."""
        for name in (*(host.name for host in self._hosts), self._name):
            with suppress(subprocess.CalledProcessError):  # it was not made
                _ip("netns", "delete", name)

    @contextmanager
    def cut(self, host: Host) -> Iterator[None]:
        """Inside the block nothing reaches this host, and nothing leaves it."""
        _ip("-n", self._name, "link", "set", host.port, "down")
        try:
            yield
        finally:
            _ip("-n", self._name, "link", "set", host.port, "up")


class Machine(RayNode):
    """A host with a Ray node. The first one is the head and has no CPUs to give, the others have one each."""

    def __init__(self, folder: Path, token: Path, host: Host) -> None:
        self.host = host
        words = ["--node-ip-address", host.address, "--num-cpus", str(min(host.index - 1, 1))]
        if host.index == 1:
            words += ["--head", "--port", str(GCS_PORT)]
            words += ["--dashboard-host", host.address, "--dashboard-port", str(DASHBOARD_PORT)]
        else:
            words += ["--address", f"{HEAD_ADDRESS}:{GCS_PORT}"]
        super().__init__(folder / f"n{host.index}", token, words, prefix=host.command())


class Network:
    """A head and workers on a switch."""

    def __init__(self, folder: Path, workers: int) -> None:
        token, hosts = make_token(folder), [Host(index + 1) for index in range(workers + 1)]
        self._switch = Switch(hosts)
        self.head, *self.workers = (Machine(folder, token, host) for host in hosts)

    def __enter__(self) -> Network:
        try:
            self._switch.connect()
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
        self._switch.remove()

    def cut(self, machine: Machine) -> AbstractContextManager[None]:
        """Inside the block nothing reaches this machine, and nothing leaves it."""
        return self._switch.cut(machine.host)


def silence(seconds: float) -> None:
    """Let a fault last."""
    time.sleep(seconds)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
