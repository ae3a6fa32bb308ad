"""`orchestrator doctor`: look at everything a study needs and say what is missing, one line each."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator.cluster.connection import connect, local_capacity
from orchestrator.cluster.joining import address_in_use
from orchestrator.tracking import server
from search_spaces.study import Study, parse_study
from trainers import catalog
from trainers.config import Data, parse
from trainers.data.availability import DIRECTORY_VARIABLE, check_available
from trainers.problems import InvalidInput

_LEAST_FREE_GIGABYTES = 1.0


def examine(address: str | None, storage: Path, data_dir: Path | None, study: Study | None, console: Console) -> bool:
    """Run all checks; returns whether everything that is required works. Missing data sets are only mentioned.

    With a study, the data that it trains on are required. On a cluster everything is looked at on each node.
    """
    report = _Report(console)
    report.check("Python", _python)
    report.check("torch", _torch)
    report.check("storage", lambda: _storage(storage))
    report.check("MLflow", lambda: _mlflow(study, storage))
    if address_in_use(address) is None:
        report.check("Ray", _private_ray)
    else:
        _examine_cluster(address, storage, data_dir, study, report)
    if study is not None:
        report.check("data", lambda: _required(data_of(study, data_dir)))
    else:
        for name in catalog.DATASETS:
            _mention(name, data_dir, report)
    return report.healthy


class _Report:
    """One line a check, and whether all of them passed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.healthy = True

    def check(self, name: str, check: Callable[[], str]) -> None:
        """Print what a check says, or why it fails."""
        try:
            said = check()
        except Exception as error:
            self.faults(name, [str(error)])
        else:
            self.passes(name, said)

    def passes(self, name: str, said: str) -> None:
        """Print a line that nobody has to act on."""
        self._say("ok", "green", name, said)

    def busy(self, name: str, said: str) -> None:
        """Print a line about what can't be looked at now, which is no fault."""
        self._say("busy", "yellow", name, said)

    def faults(self, name: str, faults: Sequence[str], otherwise: str = "") -> None:
        """Print one line a fault, or that there is none."""
        for fault in faults:
            self.healthy = False
            self._say("fails", "red", name, fault)
        if not faults:
            self.passes(name, otherwise)

    def absent(self, name: str, why: str) -> None:
        """Print what is not there and may not be needed."""
        self._say("absent", "yellow", name, why)

    def _say(self, verdict: str, color: str, name: str, said: str) -> None:
        self._console.print(Text.assemble((f"{verdict:<6}", color), f" {name:<8} {said}"), soft_wrap=True)


def _examine_cluster(
    address: str | None, storage: Path, data_dir: Path | None, study: Study | None, report: _Report
) -> None:
    try:
        with connect(address, trial_slots=1) as capacity:
            import ray

            from orchestrator.cluster import nodes

            found = nodes.living_nodes()
            count = f"{len(found)} node{'s' * (len(found) > 1)}"
            size = f"{count}, {capacity.cpus} CPUs, {capacity.gpus:g} GPUs"
            report.passes("Ray", f"{ray.__version__} ({address_in_use(address)}): {size}")
            report.faults("versions", nodes.version_faults(found), f"equal on {count}")
            report.faults("clocks", nodes.clock_faults(found), f"within {nodes.GREATEST_SKEW_SECONDS:g} s on {count}")
            report.faults("shared", nodes.storage_faults(found, storage), f"{storage} written and read on {count}")
            taken = nodes.taken_gpus(found)
            for node, gpus in taken.items():
                report.busy(
                    "GPUs", f"{node.address}: {gpus:g} of {node.gpus:g} are taken; look again when they are free"
                )
            idle = [node for node in nodes.training_nodes(found) if node not in taken]
            if capacity.gpus and idle:
                report.faults(
                    "GPUs", nodes.gpu_faults(idle), "torch can use all others" if taken else "torch can use all"
                )
            fewer = "one node trains" if idle else "no node is idle"
            sums = f"a sum over {len(idle)} nodes" if len(idle) > 1 else fewer
            report.faults("network", nodes.network_faults(idle), sums)
            if study is not None:
                wanted = data_of(study, data_dir)
                faults = [fault for data in wanted for fault in nodes.data_faults(found, data)]
                report.faults("data", faults, f"the same on {count}")
    except (ConnectionError, InvalidInput, RuntimeError) as error:
        report.faults("Ray", [str(error)])


def data_of(study: Study, data_dir: Path | None) -> list[Data]:
    """What a study trains on, from the folder that is given."""
    changes = {} if data_dir is None else {"directory": str(data_dir.absolute())}
    return [data.model_copy(update=changes) for data in study.data]


def _python() -> str:
    return f"{platform.python_version()} on {platform.platform()}, {local_capacity().cpus} CPUs"


def _torch() -> str:
    import torch

    from trainers.precision import knows_bfloat16

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    x = torch.randn(8, 8, requires_grad=True)
    torch.autograd.grad((x @ x).sum(), x)
    if gpus:
        return f"{torch.__version__}, {', '.join(gpus)}"
    units = "with" if knows_bfloat16() else "without"
    return f"{torch.__version__}, no GPU: runs on CPU, {units} matrix units for bfloat16"


def _storage(storage: Path) -> str:
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=storage) as file:
        file.write(b"written")
        file.flush()
        os.fsync(file.fileno())
    free = shutil.disk_usage(storage).free / 1e9
    if free < _LEAST_FREE_GIGABYTES:
        raise RuntimeError(f"{storage} has {free:.1f} GB free; at least {_LEAST_FREE_GIGABYTES:g} GB are needed")
    return f"{storage.absolute()} can be written, {free:.0f} GB free"


def _mlflow(study: Study | None, storage: Path) -> str:
    study = study or parse_study({"name": "doctor"})
    uri = server.tracking_uri(study, storage)
    server.check_reachable(uri, study.tracking.experiment)
    import mlflow

    return f"{mlflow.__version__}, {uri} can be used"


def _private_ray() -> str:
    with connect(None, trial_slots=1) as capacity:
        import ray

        # One task proves more than an address: a worker starts, imports our code and answers.
        answer = ray.get(ray.remote(platform.python_version).options(num_cpus=1).remote(), timeout=60)
        return f"{ray.__version__} (private): {capacity.cpus} CPUs, {capacity.gpus:g} GPUs, workers run Python {answer}"


def _required(wanted: Sequence[Data]) -> str:
    for data in wanted:
        check_available(data)
    return f"{' and '.join(dict.fromkeys(data.name for data in wanted))} can be read"


def _mention(name: str, data_dir: Path | None, report: _Report) -> None:
    directory = {"directory": str(data_dir.absolute())} if data_dir else {}
    try:
        check_available(parse({"data": {"name": name, **directory}}).data)
    except InvalidInput as error:
        report.absent(name, f"{error} (only needed for studies on it; see {DIRECTORY_VARIABLE})")
    else:
        report.passes(name, catalog.DATASETS[name].about)
