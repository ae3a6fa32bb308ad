"""Run folders of two nets that were made here, and the command line that looks at them."""

from __future__ import annotations

import copy
import csv

import pytest
import torch

from orchestrator.cli import main
from tests.orchestrator.curves import records
from trainers import checkpoint
from trainers.records import EpochRecord, append_record

QUICK = ("--attack", "pgd20,kl20", "-n", "24", "--shard", "10", "--batch-size", "10", "--epsilon", "0.06", "--no-track")
ROBUST = [0.2, 0.3, 0.4, 0.5, 0.5, 0.05, 0.02]
ENERGY = [-0.1, -0.1, -0.1, -0.1, -0.1, 4.0, 6.0]


@pytest.fixture(scope="module")
def runs(natural_net, experiment, tmp_path_factory):
    """Two run folders, `a` with the net and `b` with a coarser one, and the records of a collapse in `a`."""
    root = tmp_path_factory.mktemp("runs")
    coarse = copy.deepcopy(natural_net)
    with torch.no_grad():
        coarse.network[-1].weight *= 0.3
    for name, net, values in (("a", natural_net, {}), ("b", coarse, {"method.name": "trades"})):
        settings = experiment({"model.width": 8, "keep_every": 1, **values})
        for epoch in range(3):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                moved.network[-1].bias += 0.1 * epoch
            saved = checkpoint.save(root / name, settings, moved, {}, EpochRecord(epoch, 0.0, {}))
        checkpoint.mark_best(root / name, saved)
    for record in records(ROBUST, ENERGY):
        abnormal = {"probe/abnormal_fraction": 0.25, "probe/high_energy_abnormal_count/quantile": 2.0}
        mean = {"probe/abnormal_energy/mean": -3.0} if record.epoch != 2 else {}
        append_record(root / "a", EpochRecord(record.epoch, record.time, {**record.metrics, **abnormal, **mean}))
    return root


@pytest.fixture
def lens(capsys, tmp_path, monkeypatch):
    """`lens(*words)` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words, verb="lens"):
        code = main([verb, *map(str, words)])
        return code, *capsys.readouterr()

    return called


def lines(file):
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))
