"""Learning-rate schedules at points where their value is known."""

from __future__ import annotations

import math

import pytest

from trainers import catalog
from trainers.catalog.entries import Entry, Parameter
from trainers.config import parse
from trainers.schedules import constant, learning_rates, momenta, onecycle, piecewise, triangular


@pytest.mark.parametrize(
    ("progress", "peak", "factor"), [(0, 0.5, 0), (0.25, 0.5, 0.5), (0.5, 0.5, 1), (0.75, 0.5, 0.5), (0.65, 0.3, 0.5)]
)
def test_triangular_rises_and_falls_linearly(progress, peak, factor):
    assert triangular(progress, peak=peak) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 0.04), (0.125, 0.52), (0.25, 1), (0.625, (1 + 4e-6) / 2), (1, 4e-6), (0.5, 0.75 + 1e-6)],
)
def test_onecycle_is_two_half_cosines_from_a_25th_to_four_millionths(progress, factor):
    assert onecycle(progress, peak=0.25) == pytest.approx(factor, rel=1e-9)


def test_onecycle_is_the_one_of_pytorch():
    import torch

    steps = 40
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=steps + 1, pct_start=10.0 / steps, div_factor=25, final_div_factor=1e4
    )
    for step in range(steps + 1):
        # PyTorch's peak is at step pct_start * total - 1, ours at a fraction of the run: compare on its own clock.
        peak = 10 / steps * (steps + 1) - 1
        ours = 0.1 * onecycle(step / steps, peak=peak / steps)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < steps:
            theirs.step()


@pytest.mark.parametrize(("progress", "factor"), [(0, 1), (0.49, 1), (0.5, 0.1), (0.74, 0.1), (0.75, 0.01), (1, 0.01)])
def test_piecewise_drops_at_its_milestones(progress, factor):
    assert piecewise(progress, milestones=[0.5, 0.75], factor=0.1) == pytest.approx(factor)


def test_constant_is_one():
    assert constant(0.3) == 1


@pytest.mark.parametrize("name", catalog.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7, 99])
def test_every_step_of_a_run_has_a_positive_rate_below_the_peak(name, steps):
    rates = learning_rates(parse({"schedule": name}).schedule, 0.2, steps)
    assert len(rates) == steps
    assert all(0 < rate <= 0.2 and math.isfinite(rate) for rate in rates)


def test_the_peak_rate_is_reached_where_the_schedule_says():
    rates = learning_rates(parse({"schedule": {"name": "triangular", "peak": 0.3}}).schedule, 0.2, 99)
    assert max(rates) == rates[29] == pytest.approx(0.2)


# Momentum


def test_cycled_momentum_is_the_one_of_pytorchs_onecycle():
    """0.95 -> 0.85 at the peak of the rate -> 0.95, as WEAT's runs have it by PyTorch's default."""
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=41, pct_start=0.25)
    # PyTorch's peak is at step pct_start · total − 1 of total − 1; ours lies at a fraction of the run.
    schedule = parse({"schedule": {"name": "onecycle", "peak": 9.25 / 40}}).schedule
    ours = momenta(schedule, 0.95, 0.85, 39)
    for step in range(1, 40):
        optimizer.step()
        theirs.step()
        assert ours[step - 1] == pytest.approx(optimizer.param_groups[0]["momentum"], rel=1e-6)


def test_cycled_momentum_is_the_one_of_pytorchs_triangle():
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.0, max_lr=0.2, step_size_up=20, step_size_down=20, base_momentum=0.8, max_momentum=0.9
    )
    ours = momenta(parse({"schedule": "triangular"}).schedule, 0.9, 0.8, 39)
    for step in range(1, 40):
        optimizer.step()
        theirs.step()
        assert ours[step - 1] == pytest.approx(optimizer.param_groups[0]["momentum"], rel=1e-6)
    assert min(ours) == ours[19] == pytest.approx(0.8)


def test_a_schedule_of_another_package_with_a_peak_cycles_momentum_too(monkeypatch):
    own = Entry(
        "another.package:squared", "a parabola", "this test",
        parameters={"peak": Parameter(0.25, "where"), "power": Parameter(2.0, "how steeply")},
    )  # fmt: skip
    monkeypatch.setitem(catalog.SCHEDULES, "squared", own)
    schedule = parse({"schedule": "squared", "optimizer": {"momentum_at_peak": 0.8}}).schedule
    assert momenta(schedule, 0.9, 0.8, 7) == pytest.approx([0.85, *(0.8 + 0.1 * step / 6 for step in range(6))])


def test_without_a_value_at_the_peak_momentum_is_constant():
    assert momenta(parse({"schedule": "piecewise"}).schedule, 0.9, None, 5) == [0.9] * 5


def test_momentum_may_fall_to_none_at_the_peak():
    schedule = parse({"schedule": {"name": "triangular", "peak": 0.5}}).schedule
    assert momenta(schedule, 0.9, 0.0, 3) == pytest.approx([0.45, 0.0, 0.45])
