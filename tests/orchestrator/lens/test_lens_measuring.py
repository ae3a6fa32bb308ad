"""Each range of images is measured once, whoever asks, wherever it is computed and whatever interrupts it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from orchestrator.evaluation.subjects import Foreign
from orchestrator.evaluation.verb import settings_of
from orchestrator.exit_codes import BAD_INPUT, INTERRUPTED
from orchestrator.lens import measuring
from orchestrator.lens.networks import choose_networks
from orchestrator.lens.verb import lens_protocol
from tests.orchestrator.lens.conftest import QUICK
from trainers import checkpoint
from trainers.data.images import load_splits
from trainers.evaluation.ranges import fixed_subset
from trainers.lens import measure as lens_measure
from trainers.lens.points import Points

PLACES = {"here": None, "there": "local"}


def equal(left, right):
    return all(np.array_equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(Points))


@pytest.fixture
def counted(monkeypatch):
    """A list that grows by one whenever a range is measured."""
    calls, original = [], lens_measure.measure_range

    def called(*arguments):
        calls.append(arguments[2].attack)
        return original(*arguments)

    monkeypatch.setattr(lens_measure, "measure_range", called)
    return calls


@pytest.fixture
def measured(runs, tmp_path, monkeypatch):
    """`measured("a")`: what one pass finds of a run, or of foreign weights, with the settings of QUICK."""
    monkeypatch.chdir(tmp_path)

    def called(*words, foreign=None, output="lens", seed=0, epsilon="0.06", address=None):
        words = [str(runs / word) if (runs / word).is_dir() else str(word) for word in words]
        networks = choose_networks(words, checkpoint=None, foreign=foreign or Foreign(), data_dir=None)
        settings = settings_of(attack="pgd20,kl20", samples=24, seed=seed, shard=10, batch_size=10)
        wanted = [(network, ("clean", "pgd20", "kl20")) for network in networks]
        protocol = lens_protocol(networks, settings, epsilon)
        found = measuring.measure(
            wanted, protocol, tmp_path / output, address=address, threads=1, console=Console(quiet=True)
        )
        return found[0].points if len(found) == 1 else [one.points for one in found]

    return called


@pytest.fixture
def foreign(runs, tmp_path):
    """(file, options): the weights of the run `b` as somebody else would have saved them."""
    net = checkpoint.load(runs / "b" / "checkpoints" / "best").load_model()
    torch.save(net.network.state_dict(), tmp_path / "theirs.pt")
    return tmp_path / "theirs.pt", Foreign("small", ("width=8",), "digits:8", "none")


def test_a_second_call_measures_nothing_and_a_lost_range_alone_is_measured_again(measured, counted, tmp_path):
    whole = measured("a")
    assert len(counted) == 3 * 3
    again = measured("a")
    assert len(counted) == 3 * 3
    assert all(equal(again[stage], whole[stage]) for stage in whole)
    sorted((tmp_path / "lens" / "points").iterdir())[0].unlink()
    again = measured("a")
    assert len(counted) == 3 * 3 + 1
    assert all(equal(again[stage], whole[stage]) for stage in whole)
    measured("a", epsilon="0.060")
    assert len(counted) == 3 * 3 + 1
    measured("a", seed=1)
    # The seed is part of the protocol, of the natural points too.
    assert len(counted) == 2 * 3 * 3 + 1


def test_an_interrupted_lens_says_how_to_go_on_and_does_only_what_is_missing(
    runs, lens, measured, counted, tmp_path, monkeypatch
):
    original = lens_measure.measure_range

    def interrupted(*arguments):
        if len(counted) == 7:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(lens_measure, "measure_range", interrupted)
    code, printed, _ = lens(runs / "a", *QUICK)
    assert code == INTERRUPTED
    assert "the same command again continues from lens" in printed
    assert len(list((tmp_path / "lens" / "points").glob("*.npz"))) == 7
    monkeypatch.setattr(lens_measure, "measure_range", original)
    found = measured("a")
    assert len(counted) == 3 * 3
    undisturbed = measured("a", output="other")
    assert all(equal(found[stage], undisturbed[stage]) for stage in undisturbed)


@pytest.mark.ray
def test_shards_on_ray_give_the_points_of_one_process(measured, foreign, tmp_path):
    file, options = foreign
    both = [measured("a", file, foreign=options, output=name, address=address) for name, address in PLACES.items()]
    for here, there in zip(*both, strict=True):
        for stage, points in here.items():
            assert np.allclose(points.energy, there[stage].energy, atol=1e-4)
            assert np.array_equal(points.correct, there[stage].correct)
    names = [sorted(file.name for file in (tmp_path / name / "points").iterdir()) for name in PLACES]
    assert names[0] == names[1]


def test_a_network_named_by_a_relative_path_is_loaded_from_any_working_directory(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    (network,) = choose_networks(["a"], checkpoint=None, foreign=Foreign(), data_dir=Path("data"))
    monkeypatch.chdir(tmp_path)
    assert network.subject.source.startswith("a/checkpoints/best")
    assert network.subject.experiment.data.directory == str(runs / "data")
    network.subject.load()


def test_foreign_weights_are_seen_as_the_same_net_of_ours(measured, foreign):
    ours, theirs = measured("b"), measured(foreign[0], foreign=foreign[1])
    assert all(equal(ours[stage], theirs[stage]) for stage in ours)


def test_the_same_weights_in_another_architecture_are_not_taken_for_the_same_net(measured, foreign, counted):
    file, options = foreign
    first = measured(file, foreign=options)
    strided = replace(options, options=(*options.options, "stem_stride=2"))
    assert not np.allclose(measured(file, foreign=strided)["clean"].energy, first["clean"].energy)
    assert len(counted) == 2 * 3 * 3


def test_a_network_with_energies_that_are_not_finite_is_named(lens, tmp_path, experiment):
    test = fixed_subset(load_splits(experiment().data).test, 24).floats()
    bound = test.mean((1, 2, 3))[:8].max().item() + 1e-3  # the first eight are looked at before anything is measured
    lost = int((test.mean((1, 2, 3)) > bound).sum())
    assert 0 < lost < 24
    (tmp_path / "net.py").write_text(
        f"""
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        z = x.flatten(1)[:, :10]
        return torch.where(x.mean((1, 2, 3))[:, None] > {bound!r}, z * torch.inf, z)
def made():
    return Net()
"""
    )
    words = ["--model", "net.py:made", "--allow-code", "--data", "digits:8", "--attack", "kl20", "-n", "24"]
    code, _, error = lens(*words, "--epsilon", "0.000001", "--shard", "24", "--batch-size", "24", "--no-track")
    assert code == BAD_INPUT
    assert f"net: has energies that are not finite at {lost} (under no attack), " in error
    assert "of 24 images: leave it out" in error
