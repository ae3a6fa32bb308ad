"""Work in pieces on Ray: what no node has room for is refused and not waited for; what workers lack travels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray import cloudpickle
from rich.console import Console
from torch import nn

from orchestrator.cluster import connection, tasks
from orchestrator.cluster.connection import Capacity, NodeCapacity
from orchestrator.cluster.tasks import Task, run_tasks
from trainers.foreign.factory import factory_model
from trainers.problems import InvalidInput


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([(2, 0), (4, 0)], "--threads: 8: the largest node has 4 CPUs"),
        ([(2, 1), (16, 0)], "--threads: 8: the largest node with a GPU has 2 CPUs"),
        ([], "--threads: 8: the largest node has 0 CPUs"),
    ],
)
def test_more_threads_than_any_node_has_are_refused(
    nodes: list[tuple[int, float]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def connect(*_: object) -> Iterator[Capacity]:
        yield Capacity(tuple(NodeCapacity(*node) for node in nodes), private=False)

    monkeypatch.setattr(connection, "connect", connect)
    task = Task("one", Path("file"), lambda: nn.Identity(), lambda _model, _device: "")
    with pytest.raises(InvalidInput, match=said):
        run_tasks([task], address="HEAD:6379", threads=8, console=Console())


def test_a_model_of_the_users_own_code_is_whole_in_a_process_that_has_not_the_code(tmp_path: Path) -> None:
    (tmp_path / "code" / "layers").mkdir(parents=True)
    (tmp_path / "code" / "layers" / "__init__.py").write_text("from layers.flat import Flat\n")
    (tmp_path / "code" / "layers" / "flat.py").write_text(
        "from torch import nn\n\nclass Flat(nn.Module):\n    def forward(self, images):\n"
        "        return 5 * images.flatten(1)[:, 20:30]\n"
    )
    (tmp_path / "code" / "net.py").write_text(
        "from layers import Flat\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.flat = Flat()\n\n    def forward(self, images):\n"
        "        return self.flat(images)\n"
    )
    model = factory_model(f"{tmp_path / 'code' / 'net.py'}:Net", None, allow_code=True)
    tasks._send_factories_along()
    (tmp_path / "sent").write_bytes(cloudpickle.dumps(lambda: model))
    there = "from ray import cloudpickle; import torch; model = cloudpickle.load(open('sent', 'rb'))()"
    words = [sys.executable, "-c", f"{there}; print(model(torch.ones(1, 1, 8, 8)).sum().item())"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "50.0\n", done.stderr
