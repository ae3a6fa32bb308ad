"""`orchestrator subsets`: training images of high and low energy, by name."""

from __future__ import annotations

import copy
import json

import numpy as np
import torch

from orchestrator.exit_codes import OK
from trainers import checkpoint
from trainers.data.images import load_splits, training_indices
from trainers.records import EpochRecord


def test_subsets_are_sorted_by_the_energy_of_the_reference(runs, lens, tmp_path, experiment):
    code, printed, _ = lens(runs / "b", "--output", "s.json", verb="subsets")
    content = json.loads((tmp_path / "s.json").read_text())
    assert code == OK
    model = checkpoint.load(runs / "b" / "checkpoints" / "best").load_model()
    data = load_splits(experiment().data)
    places = {index: row for row, index in enumerate(training_indices(experiment().data).tolist())}
    with torch.no_grad():
        logits = model(data.train.floats())
    correct, energy = logits.argmax(1) == data.train.labels, -logits.logsumexp(1)
    rows = {name: [places[index] for index in indices] for name, indices in content["subsets"].items()}
    assert len(rows["misclassified"]) == int((~correct).sum()) > 0
    assert not correct[rows["misclassified"]].any()
    assert correct[rows["high_energy"]].all()
    others = sorted(set(np.flatnonzero(correct)) - set(rows["high_energy"]))
    assert energy[rows["high_energy"]].min() >= energy[others].max()
    assert energy[rows["low_energy"]].max() <= energy[rows["high_energy"]].min()
    assert f"{len(rows['random'])} images" in printed
    assert experiment(
        {"data.subset": {"file": str(tmp_path / "s.json"), "name": "high_energy", "treatment": "drop"}}
    ).digest()


def test_subsets_that_overlap_are_said_to(runs, lens, tmp_path, natural_net, experiment):
    """Where fewer than twice as many are right as wrong, the highest and the lowest energies are partly the same."""
    poor = copy.deepcopy(natural_net)
    with torch.no_grad():
        poor.network[-1].bias[0] += 20.0  # says 0 of nearly everything
    checkpoint.save(tmp_path / "poor", experiment({"model.width": 8}), poor, {}, EpochRecord(0, 0.0, {}))
    code, printed, _ = lens(tmp_path / "poor", "--checkpoint", "last", verb="subsets")
    found = json.loads((tmp_path / "subsets.json").read_text())["subsets"]
    common = len(set(found["high_energy"]) & set(found["low_energy"]))
    assert code == OK
    assert common > 0
    assert f"warning: {common} images are in high_energy and in low_energy" in printed
    assert "warning" not in lens(runs / "a", verb="subsets")[1]
