"""An error on one rank alone, as when one GPU runs out of memory: the run fails with it, and the next one trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.exit_codes import SOME_FAILED
from tests.faults.conftest import EXPERIMENT
from tests.integration.conftest import run
from tests.integration.test_extension import install
from trainers.records import read_records

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

METHOD = """
import os
from pathlib import Path
from trainers.catalog import OUTER, PRESETS, Outer, Preset

def broken_once(natural_logits, adversarial_logits, labels):
    import torch
    from torch.nn import functional as F
    from trainers.methods.outer import OuterLoss
    broken = Path(os.environ["BROKEN"])
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1 and broken.exists():
        broken.unlink()
        raise torch.OutOfMemoryError("made up: out of memory on one rank")
    return OuterLoss(F.cross_entropy(adversarial_logits, labels, reduction="none"))

OUTER["broken_once"] = Outer("toy_method:broken_once", "CE(x*)", "this test")
PRESETS["broken_once"] = Preset("fgsm", "broken_once", 1, "train", "this test", "broken once")
"""
STUDY = {
    "name": "alone",
    "experiment": EXPERIMENT | {"method": "broken_once", "epochs": 2},
    "space": {"attack.epsilon": [0.05, 0.1]},
    "search": {"trials": 2, "sampler": "random", "start": [{"attack.epsilon": 0.1}, {"attack.epsilon": 0.05}]},
    "confirm": {"top": 0},
    "resources": {"workers": 2, "concurrent_trials": 1},
}


def test_an_error_on_one_rank_fails_its_run_with_the_traceback_and_a_new_group_takes_the_next(tmp_path: Path) -> None:
    path = f"{install(tmp_path, METHOD)}:{Path(__file__).parents[2]}"
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(STUDY))
    (tmp_path / "broken").touch()
    swept = run(
        "sweep", "alone.yaml", cwd=tmp_path, measured=False, timeout=300,
        PYTHONPATH=path, BROKEN=str(tmp_path / "broken"),
    )  # fmt: skip
    assert swept.returncode == SOME_FAILED, swept.stdout + swept.stderr
    assert "trial-0000" in swept.stdout
    assert "OutOfMemoryError: made up: out of memory on one rank" in swept.stdout
    trials = tmp_path / "runs" / "alone" / "trials"
    assert "raise torch.OutOfMemoryError" in (trials / "0000" / "error.txt").read_text()
    assert read_records(trials / "0000") == []
    assert [record.epoch for record in read_records(trials / "0001")] == [0, 1]
