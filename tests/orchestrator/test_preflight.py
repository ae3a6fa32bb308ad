"""What a study says of the machine before it starts; what it refuses is in tests/integration/test_bad_input.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.study.preflight import preflight
from search_spaces.study import parse_study
from trainers import precision


@pytest.mark.parametrize(
    ("chosen", "knows", "notes"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_emulated_bfloat16_is_noted_once_before_the_first_trial(
    chosen: str, knows: bool, notes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "knows_bfloat16", lambda: knows)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    study = parse_study({"name": "s", "experiment": {"precision": chosen}, "space": {"method.name": ["sat", "trades"]}})
    said: list[str] = []
    preflight(study, tmp_path / "runs" / "s", None, say=said.append)
    assert len(said) == notes
    assert all(line.startswith("note: precision: bfloat16: this CPU") for line in said)
