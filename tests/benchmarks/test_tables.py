"""Tables of measurements: what they count is exact, what they time is a share or a ratio of something."""

from __future__ import annotations

import pytest
import torch

from benchmarks import diagnostics, memory, recipes, step_profile, subjects, training_step
from benchmarks.counting import Operations
from benchmarks.published import STEP_OF
from benchmarks.subjects import settings_of
from trainers.config import parse
from trainers.models.build import build_model

NET = {"name": "preact_resnet18", "width": 4, "blocks_per_stage": 1}


def test_a_table_of_training_steps_has_a_row_a_method(monkeypatch):
    monkeypatch.setattr(subjects, "MODEL", NET)
    monkeypatch.setattr(subjects, "BATCH", 8)
    monkeypatch.setattr(training_step, "STEP_OF", {"n_fgsm": STEP_OF["n_fgsm"]})
    (row,) = training_step.measure(1).rows
    assert (row[0], row[2]) == ("n_fgsm", "5")
    assert float(row[1]) > 0


def test_operations_are_those_of_the_passes(monkeypatch):
    """FGSM-RS: five passes, each of the operations of a forward, but for the image's gradient in the update."""
    monkeypatch.setattr(step_profile, "METHODS", ("fgsm_rs",))
    monkeypatch.setattr(step_profile, "FORMS", ("float32", "bfloat16"))
    monkeypatch.setattr(subjects, "MODEL", NET)
    monkeypatch.setattr(step_profile, "matmul_rate", lambda _: 1e12)
    exact, rounded = step_profile.measure(1).rows
    with Operations() as forward, torch.no_grad():
        build_model(settings_of("fgsm_rs"))(torch.rand(1, 3, 32, 32))
    assert float(exact[3]) == pytest.approx(5 * forward.count / 1e9, rel=0.1)
    assert exact[:2] == ("fgsm_rs", "float32")
    assert rounded[:2] == ("fgsm_rs", "bfloat16")
    assert 100 < int(exact[6]) < int(rounded[6])  # casts are kernels
    assert exact[7] == rounded[7] == "0"


def test_measuring_is_a_share_of_an_epoch(monkeypatch):
    few = settings_of("fgsm_rs", NET).to_dict()
    few["data"]["holdout"] = few["evaluation"]["probe_samples"] = 16
    monkeypatch.setattr(diagnostics, "settings_of", lambda _: parse(few))
    monkeypatch.setattr(diagnostics, "METHODS", ("fgsm_rs",))
    rows = diagnostics.measure(1).rows
    assert [precision for _, precision, *_ in rows] == ["float32", "bfloat16"]
    for _, _, *seconds, share in rows:
        training, measuring = map(float, seconds)
        assert float(share.removesuffix("%")) == pytest.approx(100 * measuring / (training + measuring), abs=1)


@pytest.mark.parametrize(("seconds", "said"), [(90 * 60, "90 min"), (9.6 * 3600, "9.6 h"), (12.2 * 86400, "12 days")])
def test_durations_are_in_the_unit_that_people_use(seconds, said):
    assert recipes.duration(seconds) == said


def test_memory_of_a_process_is_its_own(monkeypatch):
    monkeypatch.setattr(memory, "METHODS", ("n_fgsm",))
    held = torch.ones(2**28)  # 1 GiB here are nothing to the processes that are measured
    (row,) = memory.measure(1).rows
    del held
    assert all(1 < float(mebibytes) < 1000 for mebibytes in row[1:3])
