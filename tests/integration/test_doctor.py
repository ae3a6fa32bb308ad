"""`doctor` looks at the real things."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import Command

pytestmark = pytest.mark.ray


def test_a_healthy_machine_passes_and_missing_data_is_only_mentioned(orchestrator: Command) -> None:
    result = orchestrator("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("Python", "torch", "storage", "MLflow", "Ray", "digits"):
        assert f"ok     {name}" in result.stdout
    assert "absent cifar10" in result.stdout
    assert "workers run Python 3." in result.stdout


def test_what_fails_is_named_and_the_exit_code_says_environment(
    answer: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = answer("doctor", "--storage", "file/runs", "--address", "127.0.0.1:1")
    assert result.returncode == 3
    for name in ("storage", "MLflow", "Ray"):
        assert f"fails  {name}" in result.stdout
