"""The words of `python -m trainers`: files and key=value, later ones winning, and what can't be read at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainers.__main__ import read_words
from trainers.config import parse


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """`read(word or table, …)`: the raw configuration of words and of tables, written as files, in this order."""

    def of(*parts: str | dict[str, Any]) -> dict[str, Any]:
        words = []
        for place, part in enumerate(parts):
            if isinstance(part, dict):
                file = tmp_path / f"{place}.yaml"
                file.write_text(yaml.safe_dump(part))
                words.append(str(file))
            else:
                words.append(part)
        return read_words(words)

    return of


def test_later_files_and_words_win_key_by_key(read: Any) -> None:
    first = {"data": {"size": 8, "holdout": 80}, "method": {"name": "trades", "outer": {"beta": 3}}, "epochs": 2}
    second = {"data": {"holdout": 50}, "method": {"weighting": None}, "seed": 1}
    assert read(first, "attack.steps=4", second, "data.size=16") == {
        "data": {"size": 16, "holdout": 50},
        "method": {"name": "trades", "outer": {"beta": 3}, "weighting": None},
        "attack": {"steps": 4},
        "epochs": 2,
        "seed": 1,
    }
    assert read(first) == first
    assert read() == {}


@pytest.mark.parametrize(
    ("earlier", "later", "together"),
    [
        ("trades", {"beta": 3}, {"name": "trades", "beta": 3}),
        ({"name": "trades", "beta": 3}, "trades", {"name": "trades", "beta": 3}),
        ({"beta": 3}, {"name": "trades"}, {"name": "trades", "beta": 3}),
        ({"name": "weat_adv", "beta": 3}, {"name": "trades"}, {"name": "trades"}),
        ({"name": "weat_adv", "beta": 3}, "trades", {"name": "trades"}),
        ("weat_adv", "trades", "trades"),
    ],
)
def test_a_table_of_another_name_replaces_what_was_given_for_the_one_before(
    earlier: object, later: object, together: object, read: Any
) -> None:
    assert read({"method": earlier}, {"method": later}) == {"method": together}


def test_a_complete_experiment_of_another_method_leaves_nothing_of_its_slots(read: Any) -> None:
    whole = parse({"method": "weat_adv", "data": {"size": 8}, "epochs": 4}).to_dict()
    again = parse(read(whole, {"method": {"name": "sat"}, "data": {"holdout": 60}}))
    assert again.method == parse({"method": "sat"}).method
    assert (again.data.size, again.data.holdout, again.epochs) == (8, 60, 4)


def test_an_extension_that_can_not_be_loaded_is_one_message(tmp_path: Path) -> None:
    metadata = tmp_path / "toy_method-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-method\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[energy_orchestrator.methods]\ntoy = toy_method\n")
    (tmp_path / "toy_method.py").write_text("import a_module_that_is_not_there\n")
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    command = [sys.executable, "-m", "trainers", "epochs=1"]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: extension toy: toy_method can't be loaded (ModuleNotFoundError")
    assert "Traceback" not in result.stderr
