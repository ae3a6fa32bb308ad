"""What the suites of faults share: the studies that are shaken, and the table at the end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.laboratory import Injection, table

EXPERIMENT = {
    "data": {"name": "digits", "size": 8, "train_samples": 200, "holdout": 50},
    "model": {"name": "small", "width": 8},
    "method": "fgsm",
    "attack": {"epsilon": 0.1},
    "optimizer": {"learning_rate": 0.2, "batch_size": 50},
    "epochs": 16,
    "evaluation": {"epsilon": 0.1, "probe_samples": 40},
}
DIVERGING = {"method.name": "fgsm_der", "attack.epsilon": 0.1, "method.regularizer.beta": 1e38}


def shaken_study(name: str, trials: int, workers: int, **search: object) -> dict[str, Any]:
    """A study whose proposals depend on how the trials before came out."""
    return {
        "name": name,
        "experiment": EXPERIMENT,
        "space": {
            "method.name": ["fgsm", "fgsm_der"],
            "method.regularizer.beta": {"choices": [10, 1e38], "when": {"method.name": "fgsm_der"}},
            "attack.epsilon": {"low": 0.05, "high": 0.2},
        },
        "search": {"trials": trials, "startup_trials": 2, **search},
        "confirm": {"top": 0},
        "resources": {"workers": workers, "concurrent_trials": 1},
    }


INJECTIONS = pytest.StashKey[list[Injection]]()


@pytest.fixture(scope="session")
def injections(request: pytest.FixtureRequest) -> list[Injection]:
    """Every fault of the session, for the table."""
    return request.config.stash.setdefault(INJECTIONS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    done = config.stash.get(INJECTIONS, [])
    if done:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(done))
