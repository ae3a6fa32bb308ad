"""The study co_small shows what it says: an effect, not digits. Needs CIFAR-10 in ORCHESTRATOR_DATA; `make nightly`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from orchestrator.records.runs import Run
from orchestrator.records.study_folder import open_study_folder
from trainers.diagnostics.overfitting import onsets

# Epochs in which ε grows.
ALIKE = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Run]]:
    """Method -> its runs, by seed."""
    assert os.environ.get("ORCHESTRATOR_DATA"), "ORCHESTRATOR_DATA must name a folder with cifar-10-batches-py"
    # A study that was run before, to look at it alone.
    made = os.environ.get("ORCHESTRATOR_CO_SMALL")
    folder = Path(made) if made else tmp_path_factory.mktemp("co_small") / "runs" / "co_small"
    if not made:
        subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "sweep", "co_small"], cwd=folder.parents[1], check=True
        )
    found: dict[str, list[Run]] = {}
    for run in sorted(open_study_folder(folder).runs(), key=lambda run: run.experiment.seed):
        found.setdefault(run.experiment.method.name, []).append(run)
    assert [len(found["fgsm"]), len(found["fgsm_der"])] == [2, 2]
    return found


def curve(run: Run, metric: str) -> list[float]:
    return [record.metrics[metric] for record in run.records]


def last(runs: list[Run], metric: str) -> list[float]:
    return [curve(run, metric)[-1] for run in runs]


@pytest.mark.timeout(3600)
def test_fgsm_collapses_within_the_run_and_with_der_it_does_not(runs: dict[str, list[Run]]) -> None:
    for run in runs["fgsm"]:
        (onset,) = onsets(run.records, run.experiment)
        assert (onset.kind, onset.confirmed) == ("catastrophic", True)
        assert onset.epoch >= ALIKE
    assert [onsets(run.records, run.experiment) for run in runs["fgsm_der"]] == [[], []]


def test_they_learn_alike_until_examples_are_abnormal(runs: dict[str, list[Run]]) -> None:
    for plain, regularized in zip(runs["fgsm"], runs["fgsm_der"], strict=True):
        pairs = zip(*(curve(run, "val/pgd10_accuracy")[:ALIKE] for run in (plain, regularized)), strict=True)
        assert max(abs(a - b) for a, b in pairs) < 0.05


def test_fgsm_meets_its_own_attack_alone_and_der_meets_pgd(runs: dict[str, list[Run]]) -> None:
    collapsed, rescued = (last(runs[method], "val/pgd10_accuracy") for method in ("fgsm", "fgsm_der"))
    assert max(collapsed) < min(rescued)
    assert 2 * mean(collapsed) < mean(rescued)
    assert min(rescued) > 0.15  # chance is 0.1
    assert min(last(runs["fgsm"], "train/adversarial_accuracy")) > 2 * max(collapsed)


def test_abnormal_examples_and_energies_tell_them_apart(runs: dict[str, list[Run]]) -> None:
    collapsed, rescued = (last(runs[method], "train/abnormal_fraction") for method in ("fgsm", "fgsm_der"))
    assert min(collapsed) > 4 * max(rescued)
    energy = "probe_reference/delta_energy/mean"
    assert min(max(curve(run, energy)[ALIKE:]) for run in runs["fgsm"]) > 1
    assert max(abs(value) for run in runs["fgsm_der"] for value in curve(run, energy)[ALIKE:]) < 0.2
