"""Who may import whom, and that what answers at once loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("trainers", "search_spaces", "orchestrator")
# The folders of orchestrator/: each may import from those before it.
ROOMS = (
    "host", "records", "cluster", "slots", "evaluation", "pages", "report",
    "tracking", "study", "lens", "generation", "commands",
)  # fmt: skip
LAUNCHERS = {"ray", "mlflow", "optuna", "typer", "rich"}


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(file):
    """Dotted names of all modules that a file imports anywhere, also inside functions and for types."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top(names):
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("file", modules("trainers"), ids=lambda file: str(file.relative_to(ROOT)))
def test_trainers_know_nothing_of_where_they_run(file):
    assert not top(imports(file)) & {"orchestrator", "search_spaces", *LAUNCHERS}


@pytest.mark.parametrize("file", modules("search_spaces"), ids=lambda file: str(file.relative_to(ROOT)))
def test_search_spaces_know_only_the_configuration_of_the_trainers(file):
    names = imports(file)
    assert not top(names) & {"orchestrator", "torch", *LAUNCHERS}
    allowed = ("trainers.config", "trainers.catalog", "trainers.pixels", "trainers.problems", "trainers.yaml_text")
    assert all(name.startswith(allowed) or name == "trainers" for name in names if name.startswith("trainers"))


@pytest.mark.parametrize("package", OURS)
def test_nothing_imports_the_command_line(package):
    assert not [file for file in modules(package) if "orchestrator.cli" in imports(file)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_orchestrator_knows_only_those_before_it(room):
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    for file in modules(f"orchestrator/{room}"):
        ours = [name.split(".") for name in imports(file) if name.startswith("orchestrator.")]
        assert not {parts[1] for parts in ours} & later, file


def test_every_folder_of_the_orchestrator_is_a_room():
    assert {file.parent.name for file in modules("orchestrator")} == {"orchestrator", *ROOMS}


def test_the_rule_sees_imports_inside_functions(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from ray.tune import Tuner\n    import mlflow as m\n")
    assert top(imports(file)) == {"ray", "mlflow"}


def test_configuration_catalog_and_studies_load_nothing_heavy():
    heavy = ("torch", "ray", "mlflow", "optuna", "matplotlib", "sklearn", "torchvision", "pyautoattack")
    code = (
        "import sys, trainers.config, trainers.catalog, search_spaces.loader\n"
        "import trainers.data.availability, trainers.data.extra, trainers.diagnostics.overfitting\n"
        "import trainers.evaluation.consistency, orchestrator.generation.options\n"
        "from trainers.config import parse\n"
        "parse({'method': 'weat_adv_der'}).digest()\n"
        f"print(*sorted(set(sys.modules) & {set(heavy)}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_driver_of_a_study_does_without_pytorch():
    """Its workers load it at that moment: seconds on a laptop, and memory of which the driver has no use."""
    code = (
        "import sys\n"
        "import orchestrator.study.run, orchestrator.study.preflight, orchestrator.study.search\n"
        "import orchestrator.study.confirm, orchestrator.report.page\n"
        "import orchestrator.tracking.tracker, orchestrator.cluster.nodes\n"
        "print('ray' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
