"""The study co_small shows what it says: an effect, not digits. Needs CIFAR-10 in ORCHESTRATOR_DATA; `make nightly`."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import mean

import pytest

from orchestrator.journal import Journal


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Method -> the metrics of every epoch of its runs."""
    assert os.environ.get("ORCHESTRATOR_DATA"), "ORCHESTRATOR_DATA must name a folder with cifar-10-batches-py"
    folder = tmp_path_factory.mktemp("co_small")
    subprocess.run([sys.executable, "-m", "orchestrator.cli", "sweep", "co_small"], cwd=folder, check=True)
    found: dict[str, list[list[dict[str, float]]]] = {}
    for run in Journal.open(folder / "runs" / "co_small").runs():
        found.setdefault(run.experiment.method.name, []).append([record.metrics for record in run.records])
    return found


def last(trials, method, metric):
    return [epochs[-1][metric] for epochs in trials[method]]


@pytest.mark.timeout(3600)
def test_fgsm_meets_its_own_attack_alone_and_der_meets_pgd(trials):
    assert len(trials["fgsm"]) == len(trials["fgsm_der"]) == 2
    collapsed, rescued = (last(trials, method, "val/pgd10_accuracy") for method in ("fgsm", "fgsm_der"))
    assert 2 * max(collapsed) < min(rescued)
    assert min(rescued) > 0.1  # chance
    own, under_pgd = (last(trials, "fgsm", metric) for metric in ("train/adversarial_accuracy", "val/pgd10_accuracy"))
    assert min(own) > 2 * max(under_pgd)


def test_abnormal_examples_and_energies_tell_them_apart(trials):
    collapsed, rescued = (last(trials, method, "train/abnormal_fraction") for method in ("fgsm", "fgsm_der"))
    assert min(collapsed) > 5 * max(rescued)
    moved = {
        method: mean(abs(epoch["probe_reference/delta_energy/mean"]) for epochs in runs for epoch in epochs)
        for method, runs in trials.items()
    }
    assert moved["fgsm"] > 10 * moved["fgsm_der"]
