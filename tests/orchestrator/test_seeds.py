"""What the runs of a trial come to together, by their states and objectives."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.records.journal import Run
from orchestrator.records.seeds import spreads, trials
from trainers.config import parse

GOOD, BETTER, NONE = (0.8, 0.4), (0.9, 0.6), ()
MEAN = (pytest.approx(0.85), pytest.approx(0.5))


def run(seed: int, state: str, objectives: tuple[float, ...], planned: int = 2, number: int = 3) -> Run:
    reason = "because" if state in ("stopped", "failed") else ""
    kind = "repeat" if seed else "trial"
    experiment = parse({"seed": seed})
    return Run(f"{number}-{seed}", kind, number, {}, experiment, Path(), state, reason, objectives, seeds=planned)


@pytest.mark.parametrize(
    ("runs", "state", "objectives", "reason"),
    [
        ([("complete", GOOD), ("complete", BETTER)], "complete", MEAN, ""),
        ([("complete", GOOD)], "running", NONE, ""),  # the other seed has not been issued yet
        ([("complete", GOOD), ("running", NONE)], "running", NONE, ""),
        ([("failed", NONE), ("running", NONE)], "running", NONE, ""),
        ([("failed", NONE)], "failed", NONE, "seed 0: because"),  # nor will it ever be
        ([("complete", GOOD), ("failed", NONE)], "failed", NONE, "seed 1: because"),
        ([("stopped", NONE), ("failed", NONE)], "failed", NONE, "seed 1: because"),
        ([("stopped", GOOD), ("stopped", BETTER)], "stopped", MEAN, "seed 0: because; seed 1: because"),
        ([("complete", GOOD), ("stopped", BETTER)], "stopped", MEAN, "seed 1: because"),
        ([("complete", GOOD), ("stopped", NONE)], "stopped", NONE, "seed 1: because"),
    ],
)
def test_a_trial_is_what_its_seeds_leave_of_it(runs, state, objectives, reason):
    (trial,) = trials([run(seed, *ended) for seed, ended in enumerate(runs)])
    assert (trial.state, trial.objectives, trial.reason) == (state, objectives, reason)
    assert trial.experiment.seed == 0
    assert len(trial.over_seeds) == len(runs)


def test_one_seed_is_its_own_trial_and_confirmations_belong_to_none():
    alone = run(0, "complete", GOOD, planned=1)
    confirmed = Run("0003-seed1", "confirmation", 3, {}, alone.experiment, Path(), "complete", objectives=BETTER)
    assert trials([alone, confirmed]) == [alone]
    assert [(spread.mean, spread.deviation) for spread in spreads(alone)] == [(0.8, None), (0.4, None)]


def test_deviations_are_those_of_a_sample():
    (trial,) = trials([run(0, "complete", GOOD), run(1, "complete", BETTER)])
    assert [spread.deviation for spread in spreads(trial)] == [pytest.approx(0.1 / 2**0.5), pytest.approx(0.2 / 2**0.5)]
