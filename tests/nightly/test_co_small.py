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
    """Method -> the metrics of the last epochs of its runs."""
    assert os.environ.get("ORCHESTRATOR_DATA"), "ORCHESTRATOR_DATA must name a folder with cifar-10-batches-py"
    folder = tmp_path_factory.mktemp("co_small")
    subprocess.run([sys.executable, "-m", "orchestrator.cli", "sweep", "co_small"], cwd=folder, check=True)
    found: dict[str, list[dict[str, float]]] = {}
    for run in Journal.open(folder / "runs" / "co_small").runs():
        found.setdefault(run.experiment.method.name, []).append(run.records[-1].metrics)
    return found


def each(trials, method, metric):
    return [metrics[metric] for metrics in trials[method]]


@pytest.mark.timeout(3600)
def test_fgsm_meets_its_own_attack_alone_and_der_meets_pgd(trials):
    assert len(trials["fgsm"]) == len(trials["fgsm_der"]) == 2
    collapsed, rescued = (each(trials, method, "val/pgd10_accuracy") for method in ("fgsm", "fgsm_der"))
    assert 2 * max(collapsed) < min(rescued)
    assert min(rescued) > 0.1  # chance
    own, under_pgd = (each(trials, "fgsm", metric) for metric in ("train/adversarial_accuracy", "val/pgd10_accuracy"))
    assert min(own) > 2 * max(under_pgd)


def test_abnormal_examples_and_energies_tell_them_apart(trials):
    collapsed, rescued = (each(trials, method, "train/abnormal_fraction") for method in ("fgsm", "fgsm_der"))
    assert min(collapsed) > 5 * max(rescued)
    moved = [mean(map(abs, each(trials, name, "probe_reference/delta_energy/mean"))) for name in ("fgsm", "fgsm_der")]
    assert moved[0] > 10 * moved[1]
