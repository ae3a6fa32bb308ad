"""Every preset in one sweep, and a method of another package: found by its entry point, listed, trained and swept."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import run
from trainers.catalog import PRESETS
from trainers.records import read_records

METHOD = """
from torch.nn import functional as F
from trainers.catalog import OUTER, PRESETS, Outer, Parameter, Preset

def ce_both(natural_logits, adversarial_logits, labels, *, beta):
    from trainers.methods.outer import OuterLoss
    both = [F.cross_entropy(z, labels, reduction="none") for z in (natural_logits, adversarial_logits)]
    return OuterLoss(both[0], beta * both[1])

OUTER["ce_both"] = Outer(
    "toy_method:ce_both", "CE(x) + β CE(x*)", "this test",
    parameters={"beta": Parameter(1.0, "strength of the adversarial half", low=0.0)},
    needs=frozenset({"natural_logits"}),
)
PRESETS["both"] = Preset("pgd", "ce_both", 2, "train", "this test", "natural and adversarial images", beta=2.0)
"""
STUDY = {
    "name": "toys",
    "experiment": {
        "data": {"name": "digits", "size": 8, "train_samples": 100, "holdout": 50},
        "model": {"name": "small", "width": 4},
        "optimizer": {"batch_size": 50},
        "epochs": 1,
        "evaluation": {"epsilon": 0.1, "probe_samples": 20},
    },
    "space": {"method.name": [*PRESETS, "both"]},
    "search": {"sampler": "grid", "trials": len(PRESETS) + 1},
    "confirm": {"top": 0},
}


def install(folder: Path, code: str) -> str:
    """A package with one module and one entry point, as an installer leaves it; the folder for PYTHONPATH."""
    site = folder / "site"
    metadata = site / "toy_method-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-method\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[energy_orchestrator.methods]\ntoy = toy_method\n")
    (site / "toy_method.py").write_text(code)
    return str(site)


@pytest.mark.ray
def test_every_preset_and_a_method_from_another_package_are_listed_trained_and_swept(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    path = f"{install(tmp_path, METHOD)}:{root}"
    listed = run("methods", "both", cwd=tmp_path, PYTHONPATH=path)
    assert "strength of the adversarial half" in listed.stdout, listed.stderr

    words = ["data.size=8", "data.train_samples=100", "model.width=4", "epochs=1", "method=both", "method.beta=3"]
    trained = run("train", *words, "--run-dir", "alone", cwd=tmp_path, PYTHONPATH=path)
    assert trained.returncode == 0, trained.stderr
    assert len(read_records(tmp_path / "alone")) == 1

    (tmp_path / "toys.yaml").write_text(yaml.safe_dump(STUDY))
    swept = run("sweep", "toys.yaml", cwd=tmp_path, measured=False, PYTHONPATH=path)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    names = []
    for folder in (tmp_path / "runs" / "toys" / "trials").iterdir():
        names.append(yaml.safe_load((folder / "experiment.yaml").read_text())["method"]["name"])
        assert len(read_records(folder)) == 1
    assert sorted(names) == sorted(STUDY["space"]["method.name"])


def test_an_extension_that_fails_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = install(tmp_path, "import a_module_that_is_not_there\n")
    result = run("methods", cwd=tmp_path, PYTHONPATH=f"{path}:{Path(__file__).parents[2]}")
    assert result.returncode == 2
    assert "extension toy" in result.stderr
    assert "a_module_that_is_not_there" in result.stderr
