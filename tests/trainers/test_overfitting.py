"""The onset rules and the phases on curves read off the published figures, without and with measurement noise."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.config import CatastrophicRule, RobustRule
from trainers.diagnostics.overfitting import (
    Onset,
    catastrophic_onset,
    checked_onsets,
    energy_jumps,
    is_read,
    jumps_without_collapse,
    onsets,
    robust_onset,
)
from trainers.diagnostics.phases import Phases, phases
from trainers.records import EpochRecord

CHANCE = 0.1
DRAWS = 200
COLLAPSED, OVERFITS = CatastrophicRule(), RobustRule()
RELATIVE = RobustRule(relative_slope=5, slope=-0.0005)


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


# Catastrophic


def test_a_collapse_is_seen_and_confirmed_in_the_epoch_it_happens():
    assert catastrophic_onset(*COLLAPSE, CHANCE, COLLAPSED) == Onset("catastrophic", 18, True)


def test_a_collapse_without_a_jump_of_energy_is_unconfirmed_unless_the_training_attack_sees_no_loss():
    accuracy, quiet = COLLAPSE[0], np.zeros(24)
    assert catastrophic_onset(accuracy, quiet, CHANCE, COLLAPSED) == Onset("catastrophic", 18, False)
    gap = np.r_[np.zeros(18), np.full(6, 0.31)]
    seen = catastrophic_onset(accuracy, quiet, CHANCE, COLLAPSED, single_step_gap=gap)
    assert seen == Onset("catastrophic", 18, True)
    assert catastrophic_onset(accuracy, quiet, CHANCE, COLLAPSED, single_step_gap=gap - 0.02).confirmed is False


def test_a_jump_of_energy_alone_is_a_warning_and_no_collapse():
    assert catastrophic_onset(np.full(24, 0.4), COLLAPSE[1], CHANCE, COLLAPSED) is None
    assert energy_jumps(COLLAPSE[1], COLLAPSED) == [18, 19, 20]  # then the median of five has caught up
    assert energy_jumps(COLLAPSE[1], CatastrophicRule(energy_jump=4.0)) == [19, 20]
    assert energy_jumps([], COLLAPSED) == energy_jumps([7.0], COLLAPSED) == []


@pytest.mark.parametrize("window", [1, 2, 5, 30])
def test_jumps_are_those_that_the_definition_gives_epoch_by_epoch(window):
    values = np.random.default_rng(0).normal(0, 0.3, 24).cumsum()

    def jumps(epoch):
        before = values[max(0, epoch - window) : epoch]
        deviation = 1.4826 * np.median(np.abs(before - np.median(before)))
        return values[epoch] - np.median(before) > max(0.2, 1.5 * deviation)

    rule = CatastrophicRule(energy_jump=0.2, energy_deviations=1.5, energy_window=window)
    expected = [epoch for epoch in range(1, 24) if jumps(epoch)]
    assert energy_jumps(values, rule) == expected
    assert 0 < len(expected) < 20


def test_a_jump_must_stand_out_of_the_deviations_before_it():
    # Median 0, median absolute deviation 1: five deviations are 7.413.
    assert energy_jumps([-1.0, 1.0, 0.0, -1.0, 1.0, 7.41], COLLAPSED) == [1]
    assert energy_jumps([-1.0, 1.0, 0.0, -1.0, 1.0, 7.42], COLLAPSED) == [1, 5]


def test_a_net_that_was_never_robust_can_not_collapse():
    accuracy = np.r_[np.full(10, CHANCE + 0.09), np.zeros(5)]
    assert catastrophic_onset(accuracy, np.zeros(15), CHANCE, COLLAPSED) is None
    assert catastrophic_onset(accuracy + 0.01, np.zeros(15), CHANCE, COLLAPSED).epoch == 10
    assert catastrophic_onset(accuracy, np.zeros(15), CHANCE, CatastrophicRule(above_chance=0.05)).epoch == 10


def test_what_lies_exactly_on_a_threshold():
    rule = CatastrophicRule(above_chance=0.25, accuracy_gap=0.25, check_drop=0.25)
    assert catastrophic_onset([0.5, 0.25], [0.0, 0.0], 0.25, rule) is None
    seen = catastrophic_onset([0.5, 0.24], [0.0, 0.5], 0.25, rule, single_step_gap=[0.0, 0.25])
    assert seen == Onset("catastrophic", 1, True)
    assert energy_jumps([0.0, 0.5], rule) == []
    for accuracy, expected in ((0.25, []), (0.24, [Onset("catastrophic", 0, False, 2)])):
        checks = {0: {1: (0.5, 0.0), 2: (accuracy, 0.5)}}
        assert checked_onsets(made_records([0.5], [0.0], checks=checks), rule) == expected


def test_how_far_the_accuracy_must_fall_is_a_parameter():
    curve, energy = [0.8, 0.3, 0.1], np.zeros(3)
    dated = [catastrophic_onset(curve, energy, 0.0, CatastrophicRule(accuracy_drop=drop)) for drop in (0.1, 0.25, 0.5)]
    assert [onset and onset.epoch for onset in dated] == [None, 2, 1]


@pytest.mark.parametrize("fixture", [SAT, TRADES], ids=["SAT", "TRADES"])
def test_multi_step_training_does_not_collapse(fixture):
    delta_energy, error = fixture
    assert catastrophic_onset(1 - error, delta_energy, CHANCE, COLLAPSED) is None
    assert energy_jumps(delta_energy, COLLAPSED) == []


def test_under_noise_every_collapse_is_confirmed_in_its_epoch_and_nothing_else_is_one():
    rng = np.random.default_rng(0)

    def draw(accuracy, delta_energy):
        noisy = accuracy + rng.normal(0, 0.006, len(accuracy)), delta_energy + rng.normal(0, 0.02, len(accuracy))
        return catastrophic_onset(*noisy, CHANCE, COLLAPSED)

    assert {draw(*COLLAPSE) for _ in range(DRAWS)} == {Onset("catastrophic", 18, True)}
    for delta_energy, error in (SAT, TRADES):
        assert {draw(1 - error, delta_energy) for _ in range(20)} == {None}


# Robust


@pytest.mark.parametrize(("rule", "scale"), [(OVERFITS, 1), (RELATIVE, 1), (RELATIVE, 0.1)])
def test_robust_overfitting_of_sat_is_dated_to_the_first_of_three_epochs(rule, scale):
    # Smoothed over 5 epochs, the error is 0.005 above its minimum of 0.4759 from epoch 91 on; known at epoch 93.
    smooth = [np.median(SAT[1][max(0, e - 4) : e + 1]) for e in range(100)]
    first = next(e for e in range(78, 100) if smooth[e] >= min(smooth[10 : e + 1]) + 0.005)
    assert first == 91
    delta_energy, error = scale * SAT[0], SAT[1]
    assert robust_onset(delta_energy, error, rule) == Onset("robust", 91, True)
    # A run that is still going on is judged as it will be in the end.
    assert robust_onset(delta_energy[:93], error[:93], rule, epochs=100) is None
    assert robust_onset(delta_energy[:94], error[:94], rule, epochs=100) == Onset("robust", 91, True)


def test_the_absolute_rule_does_not_see_a_curve_ten_times_as_flat():
    assert robust_onset(0.1 * SAT[0], SAT[1], OVERFITS) is None


@pytest.mark.parametrize("rule", [OVERFITS, RELATIVE], ids=["absolute", "relative"])
def test_trades_does_not_overfit_robustly(rule):
    assert robust_onset(*TRADES, rule) is None


@pytest.mark.parametrize("rule", [OVERFITS, RELATIVE], ids=["absolute", "relative"])
def test_neither_sign_alone_is_robust_overfitting(rule):
    flat, rising = np.zeros(100), SAT[1]
    assert robust_onset(flat, rising, rule) is None
    assert robust_onset(SAT[0], np.linspace(0.7, 0.4, 100), rule) is None


@pytest.mark.parametrize("length", [0, 1, 9, 10, 19, 20, 30])
def test_a_run_that_is_too_short_for_the_windows_has_no_onset(length):
    falling, rising = -np.arange(length, dtype=float), np.linspace(0.4, 0.7, length)
    assert robust_onset(falling, rising, RELATIVE) is None  # a straight line is not steeper than itself
    assert (robust_onset(falling, rising, OVERFITS) is None) == (length < 23)


def test_the_relative_rule_takes_five_times_the_median_slope_of_the_middle_third():
    # Windows of two: the slope is the difference to the epoch before. The median of epochs 20 to 39 is -0.01.
    rule = RobustRule(relative_slope=5, slope=-0.0005, slope_window=2, consecutive=1, error_rise=0.0)
    before = [*[-0.04] * 20, *[-0.01] * 11, *[-0.03] * 9]

    def onset(late):
        return robust_onset(np.cumsum([*before, 0.0, *[late] * 19]), np.ones(60), rule)

    assert onset(-0.0499) is None
    assert onset(-0.0501).epoch == 41


def test_the_thirds_of_a_run_whose_length_is_no_multiple_of_three():
    # Of ten epochs the middle third is 3 to 6, of median slope -2; the last begins with epoch 7.
    settings = {"relative_slope": 5, "slope_window": 2, "consecutive": 1, "error_rise": 0, "first_epoch": 0}
    slopes = [0, -20, -20, -1, -1, -3, -20]

    def onset(late):
        rule = RobustRule(**settings, error_first_epoch=0)
        return robust_onset(np.cumsum([*slopes, late, late, late]), np.ones(10), rule)

    assert onset(-9.5) is None
    assert onset(-10.0).epoch == 7


def test_only_slopes_of_full_windows_count():
    rule = RobustRule(first_epoch=0, error_first_epoch=0, slope_window=5, error_rise=0, consecutive=2)
    assert robust_onset(-np.arange(12.0), np.ones(12), rule) == Onset("robust", 4, True)
    assert robust_onset(-np.arange(4.0), np.ones(4), rule) is None
    # Of the middle third of ten epochs, 3 to 6, three have a full window.
    values = -(np.arange(10.0) ** 3)
    slopes = {e: np.polyfit(np.arange(5), values[e - 4 : e + 1], 1)[0] for e in range(4, 10)}
    ratio = slopes[9] / np.median([slopes[e] for e in (4, 5, 6)])

    def relative(times, window=5):
        changed = {"relative_slope": times, "slope_window": window, "consecutive": 1}
        return robust_onset(values, np.ones(10), rule.model_copy(update=changed))

    assert relative(0.999 * ratio) == Onset("robust", 9, True)
    assert relative(1.001 * ratio) is None
    assert relative(0.1, window=8) is None  # none has


def test_the_error_is_smoothed_by_its_median_so_that_one_bad_epoch_is_none():
    rule = RobustRule(first_epoch=0, error_first_epoch=0, slope_window=2, error_median=3, consecutive=1)
    outlier = [0.5] * 6 + [0.9] + [0.5] * 3
    assert robust_onset(-np.arange(10.0), outlier, rule) is None
    assert robust_onset(-np.arange(10.0), [*outlier[:7], 0.9, *outlier[8:]], rule).epoch == 7


def test_thresholds_are_parameters():
    assert robust_onset(*SAT, RobustRule(consecutive=1, error_rise=0.0)).epoch < 91
    assert robust_onset(*SAT, RobustRule(slope=-1.0)) is None
    assert robust_onset(*SAT, RobustRule(slope_window=30, first_epoch=0, error_first_epoch=50)) is not None


@pytest.mark.parametrize(
    ("rule", "scale", "false_alarms"), [(OVERFITS, 1, 0.01), (RELATIVE, 1, 0.05), (RELATIVE, 0.1, 0.0)]
)
def test_under_noise_sat_is_found_and_trades_is_left_alone(rule, scale, false_alarms):
    rng = np.random.default_rng(0)
    found = {}
    for name, (delta_energy, error), deviation in (("SAT", SAT, 0.003), ("TRADES", TRADES, 0.001)):
        draws = [
            robust_onset(
                scale * (delta_energy + rng.normal(0, deviation, 100)), error + rng.normal(0, 0.006, 100), rule
            )
            for _ in range(DRAWS)
        ]
        found[name] = [onset.epoch for onset in draws if onset is not None]
        print(f"{name}: {len(found[name])}/{DRAWS}", f"median epoch {np.median(found[name])}" if found[name] else "")
    assert len(found["SAT"]) >= 0.95 * DRAWS
    assert len(found["TRADES"]) <= false_alarms * DRAWS
    assert 80 <= np.median(found["SAT"]) <= 95


# Phases


@pytest.mark.parametrize(("fixture", "breaks"), [(SAT, (12, 78)), (TRADES, (14, 79))], ids=["SAT", "TRADES"])
def test_phases_of_the_published_curves(fixture, breaks):
    found = phases(fixture[0])
    assert (found.first_break, found.second_break) == breaks
    bounds = (0, *breaks, 100)
    for slope, start, stop in zip(found.slopes, bounds, bounds[1:], strict=False):
        assert slope == pytest.approx(np.polyfit(np.arange(start, stop), fixture[0][start:stop], 1)[0], rel=1e-9)


def test_three_lines_that_do_not_join_are_found_exactly():
    values = np.r_[5 - 2.0 * np.arange(7), 0.5 * np.arange(9), 40 + 3.0 * np.arange(6)]
    assert phases(values) == Phases(7, 16, pytest.approx((-2.0, 0.5, 3.0)))


def test_the_fit_is_the_best_of_all():
    values, shortest = np.random.default_rng(1).normal(size=24).cumsum(), 4

    def error(start, stop):
        x = np.arange(start, stop)
        return np.square(values[x] - np.polyval(np.polyfit(x, values[x], 1), x)).sum()

    every = {
        (i, j): error(0, i) + error(i, j) + error(j, 24)
        for i in range(shortest, 24 - 2 * shortest + 1)
        for j in range(i + shortest, 24 - shortest + 1)
    }
    found = phases(values, min_length=shortest)
    assert (found.first_break, found.second_break) == min(every, key=every.get)


def test_a_run_too_short_for_three_pieces_has_no_phases():
    values = np.random.default_rng(0).normal(size=15)
    assert phases(values[:14]) is None
    assert (phases(values).first_break, phases(values).second_break) == (5, 10)


# Records of a run


def made_records(accuracy, reference_energy, own_energy=None, checks=None):
    """`checks[epoch]` is {iteration: (accuracy, ΔE)}."""
    own_energy = np.zeros(len(accuracy)) if own_energy is None else own_energy
    return [
        EpochRecord(
            epoch,
            0.0,
            {
                "val/pgd10_accuracy": accuracy[epoch],
                "val/chance_accuracy": CHANCE,
                "probe/delta_energy/mean": own_energy[epoch],
                "probe_reference/delta_energy/mean": reference_energy[epoch],
                "probe/adversarial_accuracy": 0.5,
                "probe_reference/pgd10_accuracy": 0.5,
            }
            | {
                f"check/{iteration:04d}/{name}": value
                for iteration, pair in (checks or {}).get(epoch, {}).items()
                for name, value in zip(("pgd5_accuracy", "delta_energy/mean"), pair, strict=True)
            },
        )
        for epoch in range(len(accuracy))
    ]


def test_onsets_read_the_curves_of_a_run(experiment):
    records = made_records(*COLLAPSE)
    assert onsets(records, experiment()) == [Onset("catastrophic", 18, True)]
    assert onsets(records[:18], experiment()) == onsets(records[:1], experiment()) == []
    assert onsets([], experiment()) == []
    stricter = {"evaluation.catastrophic.above_chance": 0.5}
    assert onsets(records, experiment(stricter)) == []


def test_records_with_a_gap_or_without_a_metric_have_no_onset(experiment):
    records = made_records(*COLLAPSE)
    incomplete = EpochRecord(7, 0.0, {"val/pgd10_accuracy": 0.3})
    for seen in (records[1:], [*records[:7], *records[8:]], [*records[:7], incomplete, *records[8:]]):
        assert onsets(seen, experiment()) == jumps_without_collapse(seen, experiment()) == []


def test_a_training_attack_that_sees_no_loss_confirms_a_collapse(experiment):
    records = made_records(COLLAPSE[0], np.zeros(24))
    for own, pgd, confirmed in ((0.9, 0.5, True), (0.5, 0.9, False), (0.9, 0.7, False)):
        gap = {"probe/adversarial_accuracy": own, "probe_reference/pgd10_accuracy": pgd}
        seen = [EpochRecord(record.epoch, 0.0, record.metrics | gap) for record in records]
        assert onsets(seen, experiment()) == [Onset("catastrophic", 18, confirmed)]


def test_onsets_need_no_other_metrics_than_those_that_are_said_to_be_read(experiment):
    whole = [
        EpochRecord(record.epoch, 0.0, {**record.metrics, "train/loss": 1.0, "val/clean_accuracy": 0.9})
        for record in made_records(*COLLAPSE, checks={17: {200: (0.5, 0.0)}, 18: {200: (0.1, 5.0)}})
    ]
    few = [
        EpochRecord(record.epoch, 0.0, {name: value for name, value in record.metrics.items() if is_read(name)})
        for record in whole
    ]
    assert {name for name in whole[18].metrics if name not in few[18].metrics} == {"train/loss", "val/clean_accuracy"}
    assert onsets(few, experiment()) == onsets(whole, experiment()) == [Onset("catastrophic", 18, True, 200)]


def test_onsets_use_the_rule_and_the_length_of_the_experiment(experiment):
    records = made_records(1 - SAT[1], np.zeros(100), own_energy=0.1 * SAT[0])
    relative = {"evaluation.robust": {"relative_slope": 5, "slope": -0.0005}}
    assert onsets(records, experiment({"epochs": 100})) == []
    assert onsets(records, experiment({"epochs": 100} | relative)) == [Onset("robust", 91, True)]
    assert onsets(records, experiment({"epochs": 150} | relative)) == []  # the last third has not begun


def test_chance_is_that_of_the_data(experiment):
    records = [
        EpochRecord(record.epoch, 0.0, {**record.metrics, "val/chance_accuracy": 0.36})
        for record in made_records(*COLLAPSE)
    ]
    assert onsets(records, experiment()) == []


def test_jumps_without_collapse_are_those_of_energy_before_one(experiment):
    jump = np.zeros(24)
    jump[7] = 0.6
    stands = made_records(np.full(24, 0.4), jump)
    assert jumps_without_collapse(stands, experiment()) == [7]
    assert jumps_without_collapse(stands, experiment({"evaluation.catastrophic.energy_jump": 0.7})) == []
    assert jumps_without_collapse(made_records(COLLAPSE[0], COLLAPSE[1] + jump), experiment()) == [7]
    late = np.zeros(100)
    late[97] = 0.6
    overfits = made_records(1 - SAT[1], late, own_energy=SAT[0])
    assert onsets(overfits, experiment()) == [Onset("robust", 91, True)]
    assert jumps_without_collapse(overfits, experiment()) == [97]


def test_checks_date_a_fall_to_the_iteration_and_compare_across_epochs():
    checks = {
        0: {200: (0.30, -0.1), 400: (0.50, -0.1)},
        1: {200: (0.29, -0.1), 400: (0.28, -0.1)},
        2: {10000: (0.10, 0.4), 9800: (0.40, -0.2)},
    }
    records = made_records(np.full(3, 0.4), np.zeros(3), checks=checks)
    assert checked_onsets(records, COLLAPSED) == [
        Onset("catastrophic", 1, False, 200),
        Onset("catastrophic", 2, True, 10000),
    ]
    assert checked_onsets(records, CatastrophicRule(check_drop=0.25)) == [Onset("catastrophic", 2, True, 10000)]
    assert checked_onsets(made_records(*COLLAPSE), COLLAPSED) == []


def test_checks_refine_the_date_of_a_collapse_and_make_none(experiment):
    fall = {200: (0.45, -0.3), 400: (0.05, 2.0)}
    assert onsets(made_records(*COLLAPSE, checks={18: fall}), experiment()) == [Onset("catastrophic", 18, True, 400)]
    assert onsets(made_records(*COLLAPSE, checks={3: fall}), experiment()) == [Onset("catastrophic", 18, True)]
    assert onsets(made_records(np.full(24, 0.4), np.zeros(24), checks={3: fall}), experiment()) == []
