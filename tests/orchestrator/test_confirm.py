"""Which trials are confirmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.journal import Run
from trainers.config import parse

pytest.importorskip("ray")


def trial(number: int, *objectives: float, state: str = "complete", seed: int = 0) -> Run:
    return Run(f"trial-{number:04d}", "trial", number, {}, parse({"seed": seed}), Path(), state, "", objectives)


def test_the_front_comes_first_then_the_next_front_each_by_its_mean() -> None:
    from orchestrator.confirm import choose, pareto_front

    trials = [
        trial(0, 0.9, 0.1),
        trial(1, 0.8, 0.5),
        trial(2, 0.7, 0.4),  # beaten by 1
        trial(3, 0.5, 0.6),
        trial(4, 0.6, 0.45),  # beaten by 1
        trial(5, state="failed"),
        trial(6, state="stopped"),  # pruned
        trial(7, 0.75, 0.45, state="stopped"),  # overfitted after its best epoch; beaten by 1
    ]
    assert [run.trial for run in pareto_front(trials[:5])] == [0, 1, 3]
    assert [run.trial for run in choose(trials, 4)] == [1, 3, 0, 7]
    assert choose(trials, 0) == []


def test_equals_do_not_push_each_other_off_the_front() -> None:
    from orchestrator.confirm import choose

    assert [run.trial for run in choose([trial(3, 0.5, 0.5), trial(1, 0.5, 0.5)], 2)] == [1, 3]


def test_trials_of_one_experiment_stand_for_one_whoever_came_first() -> None:
    from orchestrator.confirm import distinct

    side_by_side = [trial(0, state="failed"), trial(1, 0.5, 0.5), trial(2, 0.4, 0.4, seed=1), trial(3, 0.5, 0.5)]
    assert [run.trial for run in distinct(side_by_side)] == [1, 2]
