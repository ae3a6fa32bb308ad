"""Lines of `doctor` on a terminal; what it looks at is tried in tests/integration."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.commands import doctor
from trainers import catalog


def test_every_check_is_one_line_however_narrow_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("_torch", "_private_ray"):
        monkeypatch.setattr(doctor, check, lambda: "works")
    monkeypatch.setattr(doctor, "_mlflow", lambda _study, _storage: "works")
    output = io.StringIO()
    doctor.examine(None, tmp_path, tmp_path, None, Console(file=output, width=80))
    lines = output.getvalue().splitlines()
    assert len(lines) == 5 + len(catalog.DATASETS)
    assert all(line.startswith(("ok ", "absent ")) for line in lines)
