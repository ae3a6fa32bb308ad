"""What the nodes of a cluster must have in common with this process, looked at on each of them before a study starts.

Every check returns what is wrong, one line a fault: the node, what is wrong with it, what to do.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster import node_probe
from orchestrator.host import interfaces
from trainers import catalog
from trainers.catalog.extensions import GROUP
from trainers.config import Data
from trainers.data.availability import PARTS, cache_folder, data_directory
from trainers.data.extra import extra_path
from trainers.problems import InvalidInput

ray.cloudpickle.register_pickle_by_value(interfaces)
ray.cloudpickle.register_pickle_by_value(node_probe)

_PACKAGES = ("ray", "torch", "numpy", "energy-orchestrator")
_OURS = ("orchestrator", "search_spaces", "trainers")
GREATEST_SKEW_SECONDS = 2.0
_ANSWER_SECONDS = 60.0
_SUM_SECONDS = 20.0
_ADVICE = {
    "Python": "start Ray there with the same Python",
    "this package": "install the same revision there",
    "methods of other packages": "install the same ones there",
}


class UnfitCluster(ConnectionError):
    """Nodes of the cluster differ in what they must have in common."""


@dataclass(frozen=True)
class Node:
    """A living node: its id in Ray, its address, and the CPUs and GPUs that it announces."""

    id: str
    address: str
    cpus: float
    gpus: float

    def start(self, function: Callable[..., Any], *arguments: object, gpus: int = 0, alone: bool = False) -> Any:
        """Call a function of `node_probe` on this node, in a process that ends with it if it must be `alone`."""
        here = NodeAffinitySchedulingStrategy(self.id, soft=False)
        task = ray.remote(
            num_cpus=0, num_gpus=gpus, scheduling_strategy=here, max_retries=0, max_calls=1 if alone else 0
        )
        return task(function).remote(*arguments)


def living_nodes() -> list[Node]:
    """Every node of the cluster that this process has joined, by address."""
    found = [
        Node(entry["NodeID"], entry["NodeManagerAddress"], total.get("CPU", 0), total.get("GPU", 0))
        for entry in ray.nodes()
        if entry["Alive"]
        for total in [entry["Resources"]]
    ]
    return sorted(found, key=lambda node: node.address)


def require_alike(storage: Path) -> None:
    """Raise UnfitCluster unless every node runs the same versions and sees the same storage: what is quickly seen."""
    nodes = living_nodes()
    faults = version_faults(nodes) + storage_faults(nodes, storage)
    if faults:
        raise UnfitCluster("\n  ".join(["the cluster is not fit for this:", *faults]))


def version_faults(nodes: Sequence[Node]) -> list[str]:
    """Python, Ray, torch, NumPy, this package and what extends it: equal to this process's."""
    here = node_probe.versions(_PACKAGES, _OURS, GROUP)
    answers, faults = _ask({node: node.start(node_probe.versions, _PACKAGES, _OURS, GROUP) for node in nodes})
    for node, there in answers.items():
        faults += differences(node.address, here, there)
    return faults


def differences(where: str, here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """One line for each version that differs."""
    return [
        f"{where}: {name} {there[name] or 'none'}, here {version or 'none'}; "
        + _ADVICE.get(name, "install the same requirements.lock there")
        for name, version in here.items()
        if there[name] != version
    ]


def clock_faults(nodes: Sequence[Node]) -> list[str]:
    """Clocks within two seconds of this one: an epoch carries the time of the node that computed it."""
    faults = []
    for node in nodes:
        readings = []
        for _ in range(4):
            before = node_probe.clock()
            answers, silent = _ask({node: node.start(node_probe.clock)})
            if silent:
                faults += silent
                break
            readings.append((before, answers[node], node_probe.clock()))
        skew = least_skew(readings)
        if abs(skew) > GREATEST_SKEW_SECONDS:
            faults.append(f"{node.address}: its clock is {skew:+.1f} s off; run an NTP client there")
    return faults


def least_skew(readings: Sequence[tuple[float, float, float]]) -> float:
    """The smallest offset in seconds that (time before asking, answer, time after) do not rule out: 0 if none is."""
    lowest = max((there - after for _, there, after in readings), default=0.0)
    highest = min((there - before for before, there, _ in readings), default=0.0)
    return lowest if lowest > 0 else min(highest, 0.0)


def storage_faults(nodes: Sequence[Node], storage: Path) -> list[str]:
    """Written on each node, read on every other and here."""
    storage.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".doctor-", dir=storage.absolute())
    authors = {uuid.uuid4().hex: node.address for node in nodes}
    files = list(authors)
    try:
        Path(folder).chmod(0o777)  # nodes may run as other users
        answers, faults = _ask(
            {node: node.start(node_probe.write, folder, name) for node, name in zip(nodes, files, strict=True)}
        )
        faults += [f"{node.address}: {said}; mount the shared storage there" for node, said in answers.items() if said]
        if faults:
            return faults
        answers, faults = _ask({node: node.start(node_probe.unseen, folder, files) for node in nodes})
        unseen = {node.address: missing for node, missing in answers.items()}
        unseen["this process"] = node_probe.unseen(folder, files)
        for where, missing in unseen.items():
            if missing:
                faults.append(f"{where}: does not see what {', '.join(authors[name] for name in missing)} wrote there")
        return faults
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def data_faults(nodes: Sequence[Node], data: Data) -> list[str]:
    """The images of a study, in the same form and with the same content everywhere."""
    forms = data_files(data)
    paths = [path for form in forms for path in form]
    answers, faults = _ask({node: node.start(node_probe.contents, paths) for node in nodes}) if paths else ({}, [])
    first: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for node, found in answers.items():
        whole = [form for form in forms if all(found[path] for path in form)]
        if not whole:
            wanted = " and ".join(path for path in forms[0] if not found[path])
            faults.append(f"{node.address}: has no {wanted}; copy or mount it there")
        for form in whole:
            content = [found[path] for path in form]
            other, known = first.setdefault(form, (node.address, content))
            if content != known:
                faults.append(f"{node.address}: {' and '.join(form)} differs from that on {other}; copy it anew")
    return faults


def data_files(data: Data) -> list[tuple[str, ...]]:
    """The sets of paths of which a node needs one: as they were published or decoded, with extra images and subsets."""
    directory, more = data_directory(data), []
    if data.subset is not None:
        more.append(data.subset.file)
    if data.extra is not None:
        with suppress(InvalidInput):  # it can't be said where; the check of this process says so
            more.append(str(extra_path(data)))
    dataset = catalog.DATASETS[data.name]
    if not dataset.files or directory is None:
        return [tuple(more)] if more else []
    decoded = cache_folder(directory, data.name)
    raw = tuple(str(directory / name) for name in dataset.files)
    return [(*raw, *more), (*(str(decoded / f"{part}.npy") for part in PARTS), *more)]


def taken_gpus(nodes: Sequence[Node]) -> dict[Node, float]:
    """The nodes that have GPUs which somebody has reserved, and how many: who asks for them has to wait."""
    # Ray's public functions know the sum over the cluster alone.
    available = ray._private.state.available_resources_per_node()
    taken = {node: node.gpus - available.get(node.id, {}).get("GPU", 0.0) for node in nodes if node.gpus >= 1}
    return {node: count for node, count in taken.items() if count > 1e-6}


def gpu_faults(nodes: Sequence[Node]) -> list[str]:
    """Every GPU that a node announces is one that torch can compute on there. Nodes with taken ones do not answer."""
    asked = {
        node: node.start(node_probe.unusable_gpus, int(node.gpus), gpus=int(node.gpus), alone=True)
        for node in nodes
        if node.gpus >= 1
    }
    answers, faults = _ask(asked)
    return faults + [
        f"{node.address}: {what}; look at nvidia-smi there" for node, wrong in answers.items() for what in wrong
    ]


def network_faults(members: Sequence[Node]) -> list[str]:
    """A sum over nodes that train: NCCL between those with GPUs, gloo if there are none.

    If it fails, each node is tried alone with the first, to see which is at fault.
    """
    if len(members) < 2 or not _sum_faults(members):
        return []
    pairs = [fault for other in members[1:] for fault in _sum_faults([members[0], other])]
    return pairs or [
        "a sum over all nodes fails, though every node reaches the first one; check the ports between them"
    ]


def training_nodes(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that workers are placed on: those with GPUs, or with CPUs if none has."""
    return [node for node in nodes if node.gpus >= 1] or [node for node in nodes if node.cpus >= 1]


def _sum_faults(members: Sequence[Node]) -> list[str]:
    first = members[0]
    answers, faults = _ask({first: first.start(node_probe.free_port)})
    if faults:
        return faults
    port = answers[first]
    started = {}
    gpu = first.gpus >= 1  # as all of them: a GPU that a node does not announce is none that training uses
    for rank, node in enumerate(members):
        arguments = (node.address, first.address, port, rank, len(members), gpu, _SUM_SECONDS)
        started[node] = node.start(node_probe.all_reduce, *arguments, gpus=int(gpu), alone=True)
    answers, faults = _ask(started)
    # The first one's complaint is about the others.
    failed = [(node, said) for node, said in answers.items() if said and (node is not first or len(answers) == 1)]
    return faults + [
        f"{node.address}: can't sum with {first.address} ({said}); open all ports between the nodes, "
        "or name the interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME before ray start"
        for node, said in failed
    ]


def _ask(started: Mapping[Node, Any]) -> tuple[dict[Node, Any], list[str]]:
    """What the nodes answered, and a fault for each that did not."""
    answers, faults = {}, []
    deadline = time.monotonic() + _ANSWER_SECONDS
    for node, reference in started.items():
        try:
            answers[node] = ray.get(reference, timeout=max(deadline - time.monotonic(), 0.1))
        except GetTimeoutError:
            ray.cancel(reference, force=True)
            faults.append(f"{node.address}: no answer within {_ANSWER_SECONDS:.0f} s")
        except RayError as error:
            faults.append(f"{node.address}: {str(error).strip().splitlines()[-1]}")
    return answers, faults
