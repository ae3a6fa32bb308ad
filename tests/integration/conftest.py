"""Real runs of the real command line: real Ray, real MLflow, real files. Nothing here is mocked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main

STUDY = {
    "name": "tiny",
    "experiment": {
        "data": {"name": "digits", "size": 8, "train_samples": 200, "holdout": 50},
        "model": {"name": "small", "width": 8},
        "method": "fgsm",
        "attack": {"epsilon": 0.1},
        "optimizer": {"learning_rate": 0.2, "batch_size": 50},
        "epochs": 3,
        "evaluation": {"epsilon": 0.1, "probe_samples": 40},
    },
    "space": {
        "method.name": ["fgsm", "fgsm_der", "weat_adv"],
        "attack.epsilon": ["8/255", "16/255"],
        "method.beta": {"low": 1, "high": 10, "log": True, "when": {"method.name": "weat_adv"}},
        "method.regularizer.beta": {"low": 1, "high": 30, "log": True, "when": {"method.name": "fgsm_der"}},
        "method.regularizer.gamma": {"low": 0.0, "high": 0.5, "when": {"method.name": "fgsm_der"}},
    },
    "search": {
        "trials": 4,
        "startup_trials": 3,
        "start": [
            {"method.name": "fgsm_der", "attack.epsilon": "8/255", "method.regularizer.beta": 10},
            {"method.name": "weat_adv", "attack.epsilon": "16/255", "method.beta": 5},
        ],
    },
    "confirm": {"top": 1, "seeds": 2, "workers": 2, "samples": 12, "shard": 8, "batch_size": 8},
}

Command = Callable[..., subprocess.CompletedProcess[str]]


def environment(**extra: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "ORCHESTRATOR_"))}
    return clean | {"COLUMNS": "200"} | extra


def unmeasured(**extra: str) -> dict[str, str]:
    """An environment in which coverage is not measured: it halves the speed of every process of a study."""
    return {name: value for name, value in environment(**extra).items() if not name.startswith("COVERAGE_")}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", *words]


def run(
    *words: str, cwd: Path, timeout: float = 1000, measured: bool = True, **extra: str
) -> subprocess.CompletedProcess[str]:
    env = environment(**extra) if measured else unmeasured(**extra)
    return subprocess.run(command(*words), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def orchestrator(tmp_path: Path) -> Command:
    """Run the command line in an empty folder."""

    def call(*words: str, **options: str) -> subprocess.CompletedProcess[str]:
        return run(*words, cwd=tmp_path, **options)

    return call


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The same without a process of its own, for what must be answered before anything starts."""
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        code = main(list(words))
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return call


def write_study(folder: Path, **sections: object) -> Path:
    """The tiny study as a file, with some sections changed; what is None in a section is left out of it."""
    merged = {**STUDY}
    for section, content in sections.items():
        held = merged.get(section)
        if isinstance(held, dict) and isinstance(content, dict):
            content = {name: value for name, value in {**held, **content}.items() if value is not None}
        merged[section] = content
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(merged, sort_keys=False))
    return file
