"""The onset rules on curves read off the published figures, without and with measurement noise."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.overfitting import Onset, RobustRule, catastrophic_onset, onsets, robust_onset
from trainers.records import EpochRecord

CHANCE = 0.1
DRAWS = 200


def curve(points):
    """Linear between (epoch: value) points, one value an epoch."""
    return np.interp(np.arange(max(points) + 1), list(points), list(points.values()))


# Read off figures of arXiv 2407.06315 (CIFAR-10): mean ΔE(x) on training images, PGD error on held-out ones.
SAT = (
    curve(
        {0: -0.02, 5: -0.10, 10: -0.165, 40: -0.16, 60: -0.185, 70: -0.22, 78: -0.26, 85: -0.37, 90: -0.50, 95: -0.64}
        | {99: -0.745}
    ),
    curve({0: 0.74, 5: 0.62, 10: 0.59, 25: 0.54, 40: 0.515, 60: 0.495, 78: 0.475, 85: 0.478, 90: 0.482, 99: 0.488}),
)
TRADES = (
    curve({0: 0.012, 10: 0, 40: -0.004, 78: -0.017, 82: -0.03, 90: -0.045, 99: -0.058}),
    curve({0: 0.74, 10: 0.60, 25: 0.545, 50: 0.51, 78: 0.475, 90: 0.447, 99: 0.44}),
)
COLLAPSE = (
    np.r_[np.linspace(0.25, 0.45, 18), 0.02, np.zeros(5)],
    np.r_[np.linspace(-0.02, -0.30, 18), 3.0, np.full(5, 6.0)],
)


def test_a_collapse_is_seen_and_confirmed_in_the_epoch_it_happens():
    assert catastrophic_onset(*COLLAPSE, CHANCE) == Onset("catastrophic", 18, True)


def test_a_collapse_without_a_jump_of_energy_is_unconfirmed_unless_the_training_attack_sees_no_loss():
    accuracy, quiet = COLLAPSE[0], np.zeros(24)
    assert catastrophic_onset(accuracy, quiet, CHANCE) == Onset("catastrophic", 18, False)
    gap = np.r_[np.zeros(18), np.full(6, 0.31)]
    assert catastrophic_onset(accuracy, quiet, CHANCE, single_step_gap=gap) == Onset("catastrophic", 18, True)
    assert catastrophic_onset(accuracy, quiet, CHANCE, single_step_gap=gap - 0.02).confirmed is False


def test_a_jump_of_energy_alone_is_no_collapse():
    assert catastrophic_onset(np.full(24, 0.4), COLLAPSE[1], CHANCE) is None


def test_a_net_that_was_never_robust_can_not_collapse():
    accuracy = np.r_[np.full(10, CHANCE + 0.09), np.zeros(5)]
    assert catastrophic_onset(accuracy, np.zeros(15), CHANCE) is None
    assert catastrophic_onset(accuracy + 0.01, np.zeros(15), CHANCE).epoch == 10


@pytest.mark.parametrize("fixture", [SAT, TRADES], ids=["SAT", "TRADES"])
def test_multi_step_training_does_not_collapse(fixture):
    delta_energy, error = fixture
    assert catastrophic_onset(1 - error, delta_energy, CHANCE) is None


def test_robust_overfitting_of_sat_is_dated_to_the_first_of_three_epochs():
    # Smoothed over 5 epochs, the error is 0.005 above its minimum of 0.4759 from epoch 91 on; known at epoch 93.
    smooth = [np.median(SAT[1][max(0, e - 4) : e + 1]) for e in range(100)]
    first = next(e for e in range(78, 100) if smooth[e] >= min(smooth[10 : e + 1]) + 0.005)
    assert first == 91
    assert robust_onset(*SAT) == Onset("robust", 91, True)
    assert robust_onset(*(part[:93] for part in SAT)) is None
    assert robust_onset(*(part[:94] for part in SAT)) is not None


def test_trades_does_not_overfit_robustly():
    assert robust_onset(*TRADES) is None


def test_neither_sign_alone_is_robust_overfitting():
    flat, rising = np.zeros(100), SAT[1]
    assert robust_onset(flat, rising) is None
    assert robust_onset(SAT[0], np.linspace(0.7, 0.4, 100)) is None


def test_thresholds_are_parameters():
    assert robust_onset(*SAT, rule=RobustRule(consecutive=1, error_rise=0.0)).epoch < robust_onset(*SAT).epoch
    assert robust_onset(*SAT, rule=RobustRule(slope=-1.0)) is None


def test_under_noise_sat_is_found_and_trades_is_left_alone():
    rng = np.random.default_rng(0)
    found = {}
    for name, (delta_energy, error), deviation in (("SAT", SAT, 0.003), ("TRADES", TRADES, 0.001)):
        draws = [
            robust_onset(delta_energy + rng.normal(0, deviation, 100), error + rng.normal(0, 0.006, 100))
            for _ in range(DRAWS)
        ]
        found[name] = [onset.epoch for onset in draws if onset is not None]
        print(f"{name}: {len(found[name])}/{DRAWS}", f"median epoch {np.median(found[name])}" if found[name] else "")
    assert len(found["SAT"]) >= 0.95 * DRAWS
    assert len(found["TRADES"]) <= 0.01 * DRAWS
    assert 80 <= np.median(found["SAT"]) <= 95


def test_onsets_read_the_curves_of_a_run():
    accuracy, jump = COLLAPSE
    quiet = np.zeros(24)
    records = [
        EpochRecord(
            epoch,
            0.0,
            {
                "val/pgd10_accuracy": accuracy[epoch],
                "probe/delta_energy/mean": quiet[epoch],
                "probe_reference/delta_energy/mean": jump[epoch],
                "probe/adversarial_accuracy": 0.5,
                "probe_reference/pgd10_accuracy": 0.5,
            },
        )
        for epoch in range(24)
    ]
    assert onsets(records, CHANCE) == [Onset("catastrophic", 18, True)]
    assert onsets(records[:18], CHANCE) == []
    assert onsets([], CHANCE) == []
