"""`docker/slurm.sh` under a real Slurm of two nodes: a study that the time limit interrupts, submitted again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.slurm import Slurm, why_not
from tests.faults.processes import wait_until
from tests.integration.conftest import STUDY
from trainers.records import read_records

pytestmark = pytest.mark.ray

SCRIPT = Path(__file__).parents[2] / "docker" / "slurm.sh"
EPOCHS = 30


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    reason = why_not()
    if reason is not None:
        (pytest.skip if os.environ.get("ALLOW_SKIP") == "1" else pytest.fail)(reason)
    with tempfile.TemporaryDirectory(prefix="orc") as folder:
        Path(folder).chmod(0o755)  # munge wants its socket where everybody may look
        with Slurm(Path(folder)) as slurm:
            yield slurm


def test_a_job_that_its_time_limit_interrupts_goes_on_when_it_is_submitted_again(slurm: Slurm, tmp_path: Path) -> None:
    study = {
        **STUDY,
        "experiment": {**STUDY["experiment"], "epochs": EPOCHS},
        "space": {"attack.epsilon": [0.1]},
        "search": {"trials": 1},
        "confirm": {"top": 0},
        "resources": {"workers": 2},  # on both nodes, for each has one CPU
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    line = ["--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", str(SCRIPT), "sweep", "tiny.yaml"]

    def said(job: str) -> str:
        file = tmp_path / f"slurm-{job}.out"
        return file.read_text() if file.exists() else ""

    def end_of(job: str) -> tuple[str, str]:
        going = ("PENDING", "RUNNING", "COMPLETING")
        wait_until(lambda: slurm.state(job)[0] not in going, "the end of the job", every=0.5)
        return slurm.state(job)

    first = slurm.submit(*line, cwd=tmp_path)
    run_dir = tmp_path / "runs" / "tiny" / "trials" / "0000"
    wait_until(
        lambda: len(read_records(run_dir)) > 1, "two epochs",
        unless=lambda: None if slurm.state(first)[0] in ("PENDING", "RUNNING") else said(first),
        every=0.1,
    )  # fmt: skip
    slurm.run("scancel", "--batch", "--signal=INT", first)  # as `--signal=B:INT@300` before the time limit
    assert end_of(first) == ("FAILED", "130:0"), said(first)
    assert "stopping after the current epoch" in said(first)
    assert 1 < len(read_records(run_dir)) < EPOCHS
    assert slurm.processes() == []

    again = slurm.submit(*line, cwd=tmp_path)
    assert end_of(again) == ("COMPLETED", "0:0"), said(again)
    assert [record.epoch for record in read_records(run_dir)] == list(range(EPOCHS))
    assert slurm.processes() == []
    assert not list(tmp_path.glob(".ray-*"))
