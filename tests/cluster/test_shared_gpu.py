"""Two trials on one GPU: Ray places both at once. Where PyTorch can use none, each says so and fails."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from orchestrator.records.study_folder import open_study_folder
from tests.cluster.ray_node import RayNode, make_token
from tests.cluster.test_bare_cluster import ROOT, free_ports
from tests.integration.conftest import STUDY, run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def node() -> Iterator[tuple[RayNode, str]]:
    """A node that announces a GPU, whatever it has; and its address."""
    port, agent, client = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="orc-") as folder:
        words = ["--head", "--node-ip-address", "127.0.0.3", "--port", port, "--num-cpus", "4", "--num-gpus", "1"]
        words += ["--include-dashboard", "false", "--dashboard-agent-listen-port", agent]
        found = RayNode(Path(folder) / "n", make_token(Path(folder)), [*words, "--ray-client-server-port", client])
        try:
            found.start(PYTHONPATH=ROOT)
            found.wait()
            yield found, f"127.0.0.3:{port}"
        finally:
            found.stop()


def test_halves_of_a_gpu_are_two_slots_and_never_a_cpu_in_disguise(node: tuple[RayNode, str], tmp_path: Path) -> None:
    ray, address = node
    study = {
        **STUDY,
        "name": "halves",
        "experiment": {**STUDY["experiment"], "epochs": 1},
        "space": {"seed": [0, 1]},
        "search": {"sampler": "grid", "trials": 2},
        "confirm": {"top": 0},
        "resources": {"gpus_per_worker": 0.5},
    }
    (tmp_path / "halves.yaml").write_text(yaml.safe_dump(study))
    held = {name: value for name, value in ray.environment().items() if name.startswith("RAY_")}
    swept = run(
        "sweep", "halves.yaml", "--address", address, cwd=tmp_path, measured=False, PYTHONPATH=ROOT, **held
    )  # fmt: skip
    assert "2 trials on 2 slots" in swept.stdout, swept.stdout + swept.stderr
    runs = open_study_folder(tmp_path / "runs" / "halves").runs()
    assert len(runs) == 2
    if torch.cuda.is_available():
        assert swept.returncode == 0, swept.stdout + swept.stderr
        assert all(len(one.records) == 1 for one in runs)
        return
    assert swept.returncode == 1
    for one in runs:
        assert not one.records
        said = (one.folder / "error.txt").read_text()
        assert "resources.gpus_per_worker: 0.5: Ray reserved a GPU on" in said
    assert "Ray reserved a GPU on" in swept.stdout
