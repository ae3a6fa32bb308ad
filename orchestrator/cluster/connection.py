"""Ray: start a private one or join one, quietly, and say how many trials fit."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.cluster.joining import address_in_use, check_answers
from orchestrator.cluster.scratch import own_folder
from orchestrator.host.credentials import withheld
from orchestrator.host.machine import usable_cpus, visible_gpus
from orchestrator.host.own_groups import own_groups
from search_spaces.study import Resources, Study
from trainers.data.availability import DIRECTORY_VARIABLE
from trainers.problems import InvalidInput, Problem

TRIAL_SLOT = "trial_slot"
HEAD_NODE = "node:__internal_head__"  # a resource of every Ray cluster

# Read by Ray when it starts, so they are set before it is imported; see `connect` for clusters that already run.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of neighbouring workers slow each other down
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default throttles reports to one per two seconds
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `orchestrator.host.interrupt` decides what Ctrl-C means
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the state of a study is its journal, not Tune's snapshot
}

_QUIET = {"logging_level": "error", "log_to_driver": False}
_START_ATTEMPTS, _TOO_SLOW = 3, "timed out during startup"


@dataclass(frozen=True)
class NodeCapacity:
    """What one node offers."""

    cpus: int
    gpus: float

    def workers(self, resources: Resources) -> int:
        """How many workers fit. A worker has whole GPUs, or a part of one beside workers of other trials."""
        places = self.cpus // resources.cpus_per_worker
        each = resources.gpus_per_worker
        if not each:
            return places
        by_gpu = int(self.gpus) * int(1 / each + 1e-9) if each < 1 else int(self.gpus / each + 1e-9)
        return min(places, by_gpu)


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, and whether it is our own."""

    nodes: tuple[NodeCapacity, ...]
    private: bool

    @property
    def cpus(self) -> int:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def concurrent_trials(self, resources: Resources) -> tuple[int, str]:
        """(how many trials run at once, what limits it). Tune and Train do not share their accounting: we count.

        A worker is on one node; the workers of a trial may be on several.
        """
        places = sum(node.workers(resources) for node in self.nodes)
        without_gpus = sum(node.workers(resources.model_copy(update={"gpus_per_worker": 0.0})) for node in self.nodes)
        count, limit = places // resources.workers, f"{self.cpus} CPUs"
        if places < without_gpus:
            limit = f"{self.gpus:g} GPUs"
        if resources.concurrent_trials is not None and resources.concurrent_trials < count:
            count, limit = resources.concurrent_trials, "resources.concurrent_trials"
        return count, limit

    def require(self, resources: Resources, section: str) -> int:
        """Concurrent trials, or InvalidInput if not even one fits."""
        count, limit = self.concurrent_trials(resources)
        if count < 1:
            nodes = f" on {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
            raise InvalidInput.single(
                f"{section}.workers",
                f"{resources.workers} workers of {resources.cpus_per_worker} CPUs and {resources.gpus_per_worker:g} "
                f"GPUs do not fit: the cluster has {self.cpus} CPUs and {self.gpus:g} GPUs{nodes} (limit: {limit})",
            )
        return count

    def require_room(self, study: Study, *, search: bool) -> None:
        """Raise InvalidInput if no run of the search, or of the confirmation, fits; without `search`, of the latter."""
        phases: dict[str, Resources] = {}
        if search:
            phases["resources"] = study.resources
        if study.confirm.top:
            phases["confirm" if study.confirm.workers else "resources"] = study.confirm_resources
        problems: list[Problem] = []
        for section, resources in phases.items():
            try:
                self.require(resources, section)
            except InvalidInput as error:
                problems.extend(error.problems)
        if problems:
            raise InvalidInput(problems)


def local_capacity() -> Capacity:
    """This machine, without starting anything."""
    return Capacity((NodeCapacity(usable_cpus(), visible_gpus()),), private=True)


def prepare(*, private: bool) -> None:
    """Set Ray's environment. Ray reads it when it is imported, so this comes first; doing it twice does nothing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if private:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = _own_token()


@cache
def _own_token() -> str:
    """Ray's ports listen on all interfaces: a token of our own, one per process, keeps strangers out."""
    file = own_folder() / "token"
    file.write_text(secrets.token_hex(32))
    return str(file)


@contextmanager
def connect(address: str | None, trial_slots: int) -> Iterator[Capacity]:
    """Join `address`, or run a private Ray that is gone afterwards. Raises what `check_answers` does."""
    check_answers(address)
    address = address_in_use(address)
    prepare(private=address is None)

    import ray

    on_termination = signal.getsignal(signal.SIGTERM)
    folder = None
    if address is None:
        folder = _start(trial_slots)
    else:
        shared = {name: os.environ[name] for name in (DIRECTORY_VARIABLE,) if name in os.environ}
        try:
            ray.init(address=address, runtime_env={"env_vars": ENVIRONMENT | shared}, **_QUIET)
        except Exception as error:
            ray.shutdown()
            raise ConnectionError(
                f"the Ray cluster at {address} can't be joined ({str(error).strip().partition(chr(10))[0]}); a driver "
                "needs a node of it on its own machine (ray start --address) and the cluster's version of Ray"
            ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray has put its own in its place, which exits at once
    try:
        offered = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = tuple(NodeCapacity(int(total.get("CPU", 0)), float(total.get("GPU", 0))) for total in offered)
        yield Capacity(nodes, private=address is None)
    finally:
        # Handles in cycles, if another thread comes upon them while Ray shuts down, make Ray exit this process.
        gc.collect()
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(trial_slots: int) -> Path:
    """A private Ray; returns its folder. Ray allows itself 30 seconds, which a busy machine may need twice."""
    import ray

    folder = own_folder() / "r"  # one below: Ray opens the folder that it is given to everybody
    for _ in range(_START_ATTEMPTS):
        try:
            # Who asks the group of a study to stop, such as `timeout`, must not end the Ray that it stops with.
            with withheld(), own_groups():
                ray.init(
                    address="local",
                    num_cpus=usable_cpus(),  # Ray's own count knows nothing of affinity
                    num_gpus=visible_gpus(),
                    resources={TRIAL_SLOT: trial_slots},
                    include_dashboard=False,
                    _temp_dir=str(folder),
                    **_QUIET,
                )
            return folder
        except Exception as error:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            if _TOO_SLOW not in str(error):
                raise
    raise ConnectionError(
        f"Ray did not start within 30 seconds, {_START_ATTEMPTS} times: this machine is too busy (load average "
        f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs)"
    )
