"""A process group of Ray Train's workers ends when it is ended: no module of PyTorch's has kept it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import connection

pytestmark = pytest.mark.ray


def test_what_keeps_the_group_of_its_import_is_imported_before_there_is_one(tmp_path: Path) -> None:
    def worker(_config: dict[str, Any]) -> None:
        import inspect

        import torch.distributed
        from torch.distributed.nn import functional

        import trainers.ranks  # noqa: F401 - as every worker of ours does

        assert torch.distributed.is_initialized()
        kept = inspect.signature(functional.broadcast).parameters["group"].default
        rank = torch.distributed.get_rank()
        (tmp_path / f"rank{rank}.json").write_text(json.dumps(repr(kept)))

    with connection.connect(None, trial_slots=1):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from orchestrator.slots.process_group import GroupConfig

        TorchTrainer(
            worker,
            train_loop_config={},
            torch_config=GroupConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1.0}),
            run_config=RunConfig(name="group", storage_path=str(tmp_path / "train")),
        ).fit()
    assert {file.name: json.loads(file.read_text()) for file in tmp_path.glob("rank*.json")} == {
        "rank0.json": "None", "rank1.json": "None"
    }  # fmt: skip
