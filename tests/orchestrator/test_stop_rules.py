"""When a trial stops: rules on made-up curves."""

from __future__ import annotations

import pytest

from orchestrator.study.stop_rules import Stop, overfitting_stop, pruning_stop
from search_spaces.stopping import Pruning, RobustPatience, Stopping
from tests.orchestrator.curves import records
from trainers.config import parse

CATASTROPHIC = Stopping(catastrophic=True)
COLLAPSE = ([0.25, 0.45, 0.03, 0.05], [-0.1, -0.2, 5.8, 6.0])


def stops(robust, energy=None, *, rules, checks=(), **experiment):
    """The decision after every epoch."""
    made = records(robust, energy, checks=checks)
    configured = parse({"epochs": len(made) + 1, **experiment})
    return [overfitting_stop(made[: count + 1], configured, rules) for count in range(len(made))]


def test_a_collapse_stops_in_its_epoch_and_says_what_was_seen():
    before, rising, collapsed, _ = stops(*COLLAPSE, rules=CATASTROPHIC)
    assert (before, rising) == (None, None)
    reason = "catastrophic overfitting at epoch 3: robust accuracy 45.0 -> 3.0 %, ΔE +6.00"
    assert collapsed == Stop("catastrophic", 2, reason)


def test_the_thresholds_are_those_of_the_experiment():
    mild = stops([0.4, 0.5, 0.44], rules=CATASTROPHIC)
    assert mild == [None, None, None]
    strict = {"evaluation": {"catastrophic": {"accuracy_drop": 0.9}}}
    assert [stop and stop.epoch for stop in stops([0.4, 0.5, 0.44], rules=CATASTROPHIC, **strict)] == [None, None, 2]


def test_without_its_rule_a_collapse_stops_nothing():
    assert stops(*COLLAPSE, rules=Stopping()) == [None] * 4
    assert stops(*COLLAPSE, rules=Stopping(robust=RobustPatience(patience=1))) == [None] * 4


@pytest.mark.parametrize(("energy", "stopped"), [(3.0, True), (0.3, False)])
def test_a_check_inside_an_epoch_stops_where_delta_energy_confirms_it(energy, stopped):
    checks = [{0: (0.5, -0.1), 20: (0.52, -0.1)}, {0: (0.55, -0.1), 20: (0.2, energy)}]
    *_, last = stops([0.4, 0.4], checks=checks, rules=CATASTROPHIC)
    expected = "catastrophic overfitting at epoch 2, step 20: PGD-5 accuracy fell to 20.0 %, ΔE rose to 3.00"
    assert last == (Stop("catastrophic", 1, expected) if stopped else None)


# Robust overfitting: ΔE falls by 0.1 an epoch from epoch 6 on, and robust accuracy falls after epoch 10.
ROBUST = (
    [0.3 + 0.02 * epoch if epoch <= 10 else 0.5 - 0.01 * (epoch - 10) for epoch in range(24)],
    [0.0 if epoch < 6 else -0.1 * (epoch - 5) for epoch in range(24)],
)
RULE = {"first_epoch": 8, "slope_window": 3, "error_median": 1, "error_first_epoch": 4, "consecutive": 2}


def stopped_at(patience, rule=None):
    rules = Stopping(robust=RobustPatience(patience=patience))
    evaluation = {"evaluation": {"robust": rule or RULE}}
    found = [stop for stop in stops(*ROBUST, rules=rules, **evaluation) if stop]
    return found[0] if found else None


def test_without_its_rule_robust_overfitting_stops_nothing():
    assert stops(*ROBUST, rules=CATASTROPHIC, evaluation={"robust": RULE}) == [None] * 24


def test_patience_counts_from_the_first_of_the_best_epochs():
    twice = [*ROBUST[0][:12], ROBUST[0][10], *ROBUST[0][13:]]
    rules = Stopping(robust=RobustPatience(patience=4))
    found = [stop.epoch for stop in stops(twice, ROBUST[1], rules=rules, evaluation={"robust": RULE}) if stop]
    assert found[0] == 14


@pytest.mark.parametrize(("patience", "epoch"), [(1, 12), (2, 12), (5, 15)])
def test_robust_overfitting_stops_once_it_has_set_in_and_patience_is_over(patience, epoch):
    stop = stopped_at(patience)  # the onset holds for two epochs in epoch 12
    assert (stop.rule, stop.epoch) == ("robust", epoch)
    assert stop.reason == (
        f"robust overfitting at epoch 12: robust accuracy 50.0 % at epoch 11 -> {50 - (epoch - 10):.1f} % at epoch "
        f"{epoch + 1}"
    )


def test_patience_alone_stops_nothing():
    assert stopped_at(5, RULE | {"slope": -10.0}) is None


# Pruning


@pytest.mark.parametrize(
    ("reduction", "peers", "kept"),
    [
        (2, [], True),
        (2, [0.9, 0.8], True),  # two are too few
        (2, [0.9, 0.8, 0.1], False),
        (2, [0.9, 0.3, 0.3], True),
        (2, [0.4, 0.4, 0.4], True),  # equals
        (3, [0.9, 0.8, 0.1], False),
        (3, [0.9, 0.1, 0.1], True),
        (4, [0.9, 0.1, 0.1], False),
        (3, [0.1] * 5 + [0.9], True),
    ],
)
def test_halving_keeps_the_best_part_of_those_that_got_there(reduction, peers, kept):
    # By the definition: sorted, it must be among the first ceil(n / reduction), its equals behind it.
    pruning = Pruning(rule="asha", grace_epochs=2, reduction=reduction)
    ranked = sorted([*peers, 0.4], reverse=True)
    assert (len(peers) < 3 or ranked.index(0.4) < -(-len(ranked) // reduction)) is kept
    stop = pruning_stop(pruning, "fgsm", [0.95, 0.4], peers)
    assert (stop is None) is kept


def test_pruning_says_how_many_were_better():
    stop = pruning_stop(Pruning(rule="asha", grace_epochs=2), "fgsm", [0.2, 0.31], [0.5, 0.4, 0.1, 0.6])
    assert stop == Stop("prune", 1, "asha at epoch 2: robust accuracy 31.0 % is behind 3 of 4 other fgsm trials")


@pytest.mark.parametrize(
    ("curve", "peers", "kept"),
    [
        ([0.1], [0.5, 0.5], True),  # two are too few
        ([0.1], [0.5, 0.5, 0.5], False),
        ([0.5, 0.1], [0.4, 0.5, 0.9], True),  # the best so far counts
        ([0.2, 0.1], [0.3, 0.1, 0.3], False),
    ],
)
def test_the_median_rule_compares_the_best_so_far(curve, peers, kept):
    assert (pruning_stop(Pruning(rule="median", grace_epochs=1), "sat", curve, peers) is None) is kept
