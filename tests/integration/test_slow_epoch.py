"""Ctrl-C in the middle of an epoch that lasts far longer than Tune waits for anything: the epoch is finished."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.faults.processes import wait_while
from tests.integration.conftest import STUDY, command, run, unmeasured
from tests.integration.test_extension import install
from trainers.records import read_records

pytestmark = pytest.mark.ray

STEPS, SECONDS = 3, 8  # an epoch of 24 s; Tune kills what it stops after 5 to 15 s
METHOD = """
import os, time
from pathlib import Path
from trainers.catalog import OUTER, PRESETS, Outer, Preset

def slow(natural_logits, adversarial_logits, labels):
    from torch.nn import functional as F
    from trainers.methods.outer import OuterLoss
    folder = Path(os.environ["SLOW_FOLDER"])
    if (folder / "slow").exists():
        (folder / "began").touch()
        time.sleep(%d)
    return OuterLoss(F.cross_entropy(adversarial_logits, labels, reduction="none"))

OUTER["slow"] = Outer("toy_method:slow", "CE(x*), late", "this test")
PRESETS["slow"] = Preset("fgsm", "slow", 1, "train", "this test", "slow")
"""


def study(workers: int) -> dict[str, object]:
    experiment = STUDY["experiment"]
    assert isinstance(experiment, dict)
    return {
        "name": "late",
        "experiment": {
            **experiment, "method": "slow", "epochs": 2,
            "data": {"name": "digits", "size": 8, "train_samples": STEPS * 50, "holdout": 50},
        },
        "space": {"attack.epsilon": ["8/255", "16/255"]},
        "search": {"trials": 2, "sampler": "random"},
        "confirm": {"top": 0},
        "resources": {"workers": workers, "concurrent_trials": 1},
    }  # fmt: skip


def test_the_epoch_that_was_under_way_is_recorded_nothing_new_begins_and_resume_goes_on(tmp_path: Path) -> None:
    """With one worker and with a group of two, at the same time: most of it is waiting."""
    with ThreadPoolExecutor(2) as both:
        list(both.map(interrupt_and_resume, (tmp_path / "one", tmp_path / "two"), (1, 2)))


def interrupt_and_resume(tmp_path: Path, workers: int) -> None:
    tmp_path.mkdir()
    site = install(tmp_path, METHOD % SECONDS)
    environment = {"PYTHONPATH": f"{site}:{Path(__file__).parents[2]}", "SLOW_FOLDER": str(tmp_path)}
    (tmp_path / "late.yaml").write_text(yaml.safe_dump(study(workers)))
    (tmp_path / "slow").touch()
    driver = subprocess.Popen(
        command("sweep", "late.yaml"), cwd=tmp_path, env=unmeasured(**environment),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_while(driver, (tmp_path / "began").exists, "a step")
        driver.send_signal(signal.SIGINT)
        began = time.monotonic()
        said, _ = driver.communicate(timeout=300)
    finally:
        if driver.poll() is None:
            os.kill(driver.pid, signal.SIGKILL)
    assert driver.returncode == 130, said
    assert time.monotonic() - began > (STEPS - 1) * SECONDS
    trials = tmp_path / "runs" / "late" / "trials"
    assert [folder.name for folder in trials.iterdir()] == ["0000"], "a second trial was begun"
    before = read_records(trials / "0000")
    # A group may be one epoch ahead of the answer to its report.
    assert [record.epoch for record in before][:1] == [0], said
    assert "Traceback" not in said

    if workers == 1:
        return  # test_interruption resumes such a study
    (tmp_path / "slow").unlink()
    resumed = run("resume", "runs/late", cwd=tmp_path, measured=False, **environment)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [[record.epoch for record in read_records(trials / name)] for name in ("0000", "0001")] == [[0, 1]] * 2
    assert read_records(trials / "0000")[0] == before[0]
