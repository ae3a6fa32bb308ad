"""What a plan says a run will cost, against the operations that its model does."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.study.costs import attack_tflop, cost_of, model_size, rung_costs
from orchestrator.study.plan import print_plan
from search_spaces.study import parse_study
from trainers.config import parse
from trainers.models.build import build_model
from trainers.problems import InvalidInput


@pytest.mark.parametrize(
    "raw",
    [
        {"data": "tiny_imagenet"},
        {"data": "tiny_imagenet", "model": {"name": "wide_resnet28_10", "depth": 16, "widen_factor": 4}},
        {"data": "cifar100", "model": {"name": "wide_resnet34_10", "depth": 40, "widen_factor": 2}},
        {"data": "cifar10", "model": {"name": "resnet18", "width": 32, "blocks_per_stage": 4}},
        {"data": {"name": "digits", "size": 64}},
        {"data": "cifar10", "model": {"name": "small", "stem_stride": 2}},
    ],
)
def test_the_cost_of_a_forward_follows_the_size_of_images_and_model(raw):
    experiment = parse(raw)
    with torch.device("meta"):
        model = build_model(experiment)
        channels = 1 if experiment.data.name == "digits" else 3
        with FlopCounterMode(display=False) as counted:
            model(torch.empty(1, channels, experiment.data.size, experiment.data.size))
    gigaflop, parameters = model_size(experiment)
    # Rough: the stem and the first projections do not scale as the rest.
    assert gigaflop == pytest.approx(counted.get_total_flops() / 1e9, rel=0.15)
    assert parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.15)


def test_four_times_the_pixels_are_four_times_the_work():
    small, large = (cost_of(parse({"data": {"name": "digits", "size": size}})) for size in (32, 64))
    assert large.tflop == pytest.approx(4 * small.tflop)


def test_a_plan_counts_every_seed_and_says_what_may_cost_less(tmp_path, capsys):
    raw = {
        "name": "s",
        "experiment": {"method": "sat", "epochs": 8},
        "space": {
            "method.name": ["sat", "sat_der"],
            "method.regularizer.beta": {"low": 1, "high": 2, "when": {"method.name": "sat_der"}},
        },
        "search": {"trials": 2},
        "confirm": {"top": 0},
    }
    print_plan(parse_study(raw), tmp_path, None)
    plain = capsys.readouterr().out
    stop = {"catastrophic": True, "robust": {"patience": 5}, "prune": {"rule": "asha", "grace_epochs": 3}}
    raw["search"] |= {"seeds": 3, "share_prefix": True, "reuse": True, "stop": stop}
    print_plan(parse_study(raw), tmp_path, None)
    told = capsys.readouterr().out
    once, three_times = (float(_after(text.partition("epoch")[2], "; about ")) for text in (plain, told))
    assert three_times == pytest.approx(3 * once, rel=0.1)
    assert ", if every method comes equally often" in plain
    for line in (
        "epoch, mean of 3 seeds",
        "stops in the epoch in which it collapses",
        "stops 5 epochs after its best",
        "falls behind others of its method (asha, after 3 epochs)",
        "share their beginning, branching after epoch 6",
        "that another study under the same storage has finished",
    ):
        assert line in told
        assert line not in plain


def test_a_plan_is_of_the_longest_runs_that_the_space_can_reach(tmp_path, capsys):
    told = []
    for space in ({"epochs": [2, 8]}, {"epochs": [8, 2]}):
        raw = {"name": "s", "experiment": {"model": "small"}, "space": space, "confirm": {"attack": "pgd20"}}
        print_plan(parse_study(raw), tmp_path, None)
        told.append(capsys.readouterr().out.partition("trials (")[2])
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("epochs", "every", "left"), [(1, None, 1), (2, None, 2), (30, None, 3), (30, 10, 6), (30, 1, 30)]
)
def test_the_disk_holds_the_newest_the_best_and_what_is_kept(epochs, every, left):
    one = cost_of(parse({"epochs": 1})).disk
    assert cost_of(parse({"epochs": epochs, "keep_every": every})).disk == left * one


def test_a_moving_average_is_stored_beside_the_weights_and_their_momentum():
    averaged = parse({"optimizer": {"ema_decay": 0.99}})
    assert cost_of(averaged).disk == 1.5 * cost_of(parse({})).disk


def test_a_ladder_has_its_price(tmp_path, capsys):
    raw = {"name": "s", "search": {"trials": 20}, "confirm": {"top": 1, "seeds": 1, "attack": "pgd20", "samples": 64}}
    print_plan(parse_study(raw), tmp_path, None)
    alone = _minutes(capsys.readouterr().out, "in all about ")
    rung = {"attack": "autoattack", "samples": 64}
    raw["confirm"]["ladder"] = [rung | {"keep": 10}, rung | {"keep": 5}, rung | {"keep": 1}]
    print_plan(parse_study(raw), tmp_path, None)
    told = capsys.readouterr().out
    rungs = [_minutes(line, "at most about ") for line in told.splitlines() if "held-out images leaves" in line]
    assert rungs == pytest.approx([rungs[0], rungs[0] / 2, rungs[0] / 4], rel=0.1)
    assert _minutes(told, "in all about ") == pytest.approx(alone + sum(rungs), rel=0.1)


def test_a_rung_attacks_every_seed_of_the_trials_that_are_left_and_is_free_where_nobody_drops():
    rungs = [{"attack": "pgd20", "samples": 64, "keep": 20}, {"attack": "autoattack", "samples": 64, "keep": 5}]
    raw = {"name": "s", "search": {"trials": 20, "seeds": 3}, "confirm": {"top": 1, "ladder": rungs}}
    study = parse_study(raw)
    first, second = rung_costs(study)
    assert (first.trials, first.left, first.tflop) == (20, 20, 0)
    assert (second.trials, second.left, second.tflop) == (20, 5, attack_tflop(study, "autoattack", 20 * 3 * 64))


@pytest.mark.parametrize("widths", [[4, 16], [16, 4]])
def test_an_attack_is_priced_for_the_dearest_model_of_the_space(widths):
    experiment = {"model": {"name": "small", "width": 16}}
    wide = parse_study({"name": "s", "experiment": experiment})
    both = parse_study({"name": "s", "experiment": experiment, "space": {"model.width": widths}})
    assert attack_tflop(both, "pgd20", 100) == attack_tflop(wide, "pgd20", 100) > 0


def _minutes(text, words):
    number, unit = text.partition(words)[2].replace(",", "").split()[:2]
    return float(number) * (60 if unit.endswith("-h") else 1)


def _after(text, words):
    return text.partition(words)[2].split()[0]


def test_an_address_that_can_not_be_one_is_found_in_the_plan(tmp_path, capsys):
    with pytest.raises(InvalidInput, match="'foo': allowed: HOST:PORT"):
        print_plan(parse_study({"name": "s"}), tmp_path, "foo")
    print_plan(parse_study({"name": "s"}), tmp_path, "head:6379")
    assert "on the Ray cluster at head:6379" in capsys.readouterr().out
