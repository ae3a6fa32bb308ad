"""Work in pieces on Ray: what no node has room for is refused and not waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console
from torch import nn

from orchestrator import cluster
from orchestrator.cluster import Capacity, NodeCapacity
from orchestrator.tasks import Task, run_tasks
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

    monkeypatch.setattr(cluster, "connect", connect)
    task = Task("one", lambda: nn.Identity(), lambda _model, _device: "")
    with pytest.raises(InvalidInput, match=said):
        run_tasks([task], address="HEAD:6379", threads=8, console=Console())
