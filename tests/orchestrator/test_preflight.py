"""What a study says of the machine before it starts; what it refuses is in tests/integration/test_bad_input.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cluster.connection import Capacity, NodeCapacity
from orchestrator.study import plan
from orchestrator.study import preflight as preflight_module
from orchestrator.study.plan import print_plan
from orchestrator.study.preflight import preflight
from search_spaces.study import parse_study
from trainers import precision
from trainers.problems import InvalidInput


@pytest.mark.parametrize(
    ("chosen", "knows", "notes"),
    [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0), ("tf32", True, 1)],
)
def test_a_precision_that_is_not_what_this_cpu_computes_in_is_noted_once_before_the_first_trial(
    chosen: str, knows: bool, notes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "knows_bfloat16", lambda: knows)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    study = parse_study({"name": "s", "experiment": {"precision": chosen}, "space": {"method.name": ["sat", "trades"]}})
    said: list[str] = []
    preflight(study, tmp_path / "runs" / "s", None, say=said.append)
    assert len(said) == notes
    assert all(line.startswith(f"note: precision: {chosen}: ") for line in said)


@pytest.mark.parametrize(
    ("searching", "confirming", "refused", "refused_without_search"),
    [
        (64, 1, ["resources.workers"], []),
        (1, 64, ["confirm.workers"], ["confirm.workers"]),
        (64, 32, ["resources.workers", "confirm.workers"], ["confirm.workers"]),
        (64, None, ["resources.workers"], ["resources.workers"]),
    ],
)
def test_room_is_needed_for_what_will_run_and_the_plan_says_so_too(
    searching: int,
    confirming: int | None,
    refused: list[str],
    refused_without_search: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for module in (plan, preflight_module):
        monkeypatch.setattr(module, "local_capacity", lambda: Capacity((NodeCapacity(2, 0),), private=True))
    study = parse_study({"name": "s", "resources": {"workers": searching}, "confirm": {"workers": confirming}})

    def fields(check: Callable[[], None]) -> list[str]:
        try:
            check()
        except InvalidInput as error:
            return [problem.field for problem in error.problems]
        return []

    folder = tmp_path / "runs" / "s"
    assert fields(lambda: preflight(study, folder, None, True, say=print)) == refused
    assert fields(lambda: preflight(study, folder, None, False, say=print)) == refused_without_search
    assert fields(lambda: print_plan(study, tmp_path, None)) == refused
