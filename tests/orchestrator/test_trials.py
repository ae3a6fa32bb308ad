"""What the runs of a trial come to together, by their states and objectives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.records.constraints import limits, violations
from orchestrator.records.runs import Run
from orchestrator.records.trials import trials
from tests.orchestrator.made_up_driver import made_up_study
from trainers.config import parse
from trainers.records import EpochRecord

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
    assert len(trial.runs) == len(runs)


def test_one_seed_is_its_own_trial_and_confirmations_belong_to_none():
    alone = run(0, "complete", GOOD, planned=1)
    confirmed = Run("0003-seed1", "confirmation", 3, {}, alone.experiment, Path(), "complete", objectives=BETTER)
    (trial,) = trials([alone, confirmed])
    assert trial.runs == (alone,)
    assert [(spread.mean, spread.deviation) for spread in trial.spreads()] == [(0.8, None), (0.4, None)]


def test_a_trial_waits_for_no_seed_once_one_has_ended_for_nothing():
    (trial,) = trials([run(0, "complete", GOOD, planned=3), run(1, "failed", NONE, planned=3)])
    assert trial.state == "failed"
    (alone,) = trials([run(0, "failed", NONE, planned=1)])
    assert alone.reason == "because"


def test_a_metric_that_one_seed_lacks_has_no_mean():
    metrics = [{"val/pgd10_accuracy": 0.4, "val/clean_accuracy": 0.8}, {"val/pgd10_accuracy": 0.6}]
    ended = [
        replace(run(seed, "complete", GOOD), records=(EpochRecord(0, 0.0, held),)) for seed, held in enumerate(metrics)
    ]
    assert trials(ended)[0].metrics_at("best", list(metrics[0])) == {"val/pgd10_accuracy": pytest.approx(0.5)}


def test_deviations_are_those_of_a_sample():
    (trial,) = trials([run(0, "complete", GOOD), run(1, "complete", BETTER)])
    assert [spread.deviation for spread in trial.spreads()] == [
        pytest.approx(0.1 / 2**0.5),
        pytest.approx(0.2 / 2**0.5),
    ]


@pytest.mark.parametrize("rule", ["best", "last"])
def test_what_workers_ended_after_the_decision_to_stop_counts_for_nothing(rule: str) -> None:
    """Two seeds; the first is stopped after its epoch 1, and its workers end another, more robust and less accurate."""
    curves = [[(0.9, 0.4), (0.8, 0.5), (0.5, 0.7)], [(0.8, 0.2), (0.7, 0.6), (0.6, 0.6)]]
    names = ("val/clean_accuracy", "val/pgd10_accuracy")
    records = [
        tuple(EpochRecord(e, 0.0, dict(zip(names, point, strict=True))) for e, point in enumerate(curve))
        for curve in curves
    ]
    ended = [run(0, "stopped", (0.8, 0.5)), run(1, "complete", (0.7, 0.6))]
    known = [replace(one, records=held) for one, held in zip(ended, records, strict=True)]
    known[0] = replace(known[0], stopped_by="catastrophic", stopped_after=1)
    (trial,) = trials(known)
    clean = {"best": (0.8 + 0.7) / 2, "last": (0.8 + 0.6) / 2}[rule]
    assert trial.metrics_at(rule, ["val/clean_accuracy", "val/unknown"]) == {"val/clean_accuracy": pytest.approx(clean)}
    of = made_up_study(checkpoint=rule, constraints={"val/clean_accuracy": {"at_least": 0.69}})
    assert violations(limits(of, known), trial, rule) == {"val/clean_accuracy": pytest.approx(0.69 - clean)}
