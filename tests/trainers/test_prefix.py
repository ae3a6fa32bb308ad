"""A run that begins from the epochs of another one ends as if it had trained them itself, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.recorded import timeless
from tests.trainers.test_loop import final_weights, same_weights
from trainers import checkpoint
from trainers.branching import branching_epochs, prefix_digest
from trainers.loop import fit
from trainers.origin import Origin, read_origin
from trainers.prefix import Sharing, begin, fit_and_leave, leave, take_over
from trainers.ranks import Ranks
from trainers.records import RECORDS_FILE, read_records

BASE = {"attack.steps": 2, "epochs": 4}
SAT_DER = BASE | {"method.name": "sat_der", "method.regularizer.start": 0.5}
# What acts from the third of four epochs on, and what it may be there instead.
PAIRS = {
    "der": (SAT_DER, SAT_DER | {"method.regularizer.beta": 3.0, "method.regularizer.gamma": 0.0}),
    "the base itself": (BASE | {"method.name": "sat"}, SAT_DER),
    "mail": (
        BASE | {"method.name": "mail_at", "method.weighting.start": 0.5},
        BASE | {"method.name": "mail_at", "method.weighting.start": 0.5, "method.weighting.slope": 2.0},
    ),
    "awp": (
        BASE | {"method.name": "sat_awp", "method.weight_perturbation.start": 0.5, "optimizer.ema_decay": 0.9},
        BASE | {"method.name": "sat_awp", "method.weight_perturbation.start": 0.5, "optimizer.ema_decay": 0.9}
        | {"method.weight_perturbation.gamma": 0.05},
    ),
    "awp after none": (
        BASE | {"method.name": "sat"}, BASE | {"method.name": "sat_awp", "method.weight_perturbation.start": 0.5},
    ),
    "awp on gradients after none": (
        {"epochs": 4, "method.name": "grad_align"},
        {"epochs": 4, "method.name": "grad_align", "method.weight_perturbation": {"name": "awp", "start": 0.5}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def train(splits, tmp_path_factory):
    """`train(experiment)`: the folder of a whole run without any sharing; equal ones are trained once."""
    trained = {}

    def run(experiment):
        digest = experiment.digest()
        if digest not in trained:
            trained[digest] = tmp_path_factory.mktemp("whole")
            list(fit(experiment, trained[digest], ranks=Ranks(0, 1, torch.device("cpu")), splits=splits))
        return trained[digest]

    return run


@pytest.fixture
def sharing(tmp_path):
    return Sharing(tmp_path / "prefixes", (2,))


def assert_same_run(ours, theirs):
    assert timeless(read_records(ours)) == timeless(read_records(theirs))
    assert same_weights(final_weights(ours), final_weights(theirs))
    best = [checkpoint.load(checkpoint.best_folder(run_dir)) for run_dir in (ours, theirs)]
    assert best[0].record.epoch == best[1].record.epoch
    assert same_weights(best[0].weights(), best[1].weights())


@pytest.mark.parametrize("pair", PAIRS)
def test_a_branched_run_equals_a_whole_one_bit_for_bit(pair, experiment, train, alone, sharing, tmp_path):
    first, second = map(experiment, PAIRS[pair])
    assert prefix_digest(first, 2) == prefix_digest(second, 2)
    assert prefix_digest(first, 3) != prefix_digest(second, 3)
    running = fit_and_leave(first, tmp_path / "first", sharing, "trial-0000", ranks=alone)
    for _ in range(2):
        next(running)
    running.close()
    origin = begin(second, tmp_path / "second", sharing.store)
    assert origin == Origin("prefix", "trial-0000", 2) == read_origin(tmp_path / "second")
    assert read_records(tmp_path / "second") == read_records(tmp_path / "first")
    rest = list(fit_and_leave(second, tmp_path / "second", sharing, "trial-0001", ranks=alone))
    assert [record.epoch for record in rest] == [2, 3]
    assert_same_run(tmp_path / "second", train(second))
    opened = [checkpoint.load(folder).experiment for folder in (tmp_path / "second" / "checkpoints").iterdir()]
    assert opened == [second] * len(opened)


def test_checkpoints_that_are_to_be_kept_are_there_where_a_run_did_not_compute_them(
    experiment, stopped, alone, sharing, tmp_path
):
    first, second = experiment(SAT_DER), experiment(PAIRS["der"][1] | {"keep_every": 1})
    leave(first, stopped, sharing, "trial-0000")  # keeps the newest two, which are all
    (prefix,) = sharing.store.iterdir()
    assert not take_over(prefix, tmp_path / "second", second, Origin("prefix", "trial-0000", 2))
    shutil.rmtree(prefix)
    leave(experiment(SAT_DER | {"keep_every": 1}), stopped, sharing, "trial-0000")
    assert begin(second, tmp_path / "second", sharing.store) == Origin("prefix", "trial-0000", 2)
    list(fit(second, tmp_path / "second", ranks=alone))
    folders = sorted((tmp_path / "second" / "checkpoints").glob("epoch_*"))
    assert [checkpoint.load(folder).record.epoch for folder in folders] == [0, 1, 2, 3]


def test_only_what_is_the_same_run_is_taken_over_whatever_a_folder_is_called(experiment, stopped, tmp_path):
    other = experiment(SAT_DER | {"seed": 1})
    assert not take_over(stopped, tmp_path / "copy", other, Origin("study", "s/trials/0000", 2))
    assert not (tmp_path / "copy").exists()


def test_the_longest_prefix_is_taken_and_one_of_another_seed_is_not(experiment, train, alone, tmp_path):
    first, second = map(experiment, PAIRS["the base itself"])
    sharing = Sharing(tmp_path / "prefixes", (1, 2, 3))
    list(fit_and_leave(first, tmp_path / "first", sharing, "trial-0000", ranks=alone))
    assert_same_run(tmp_path / "first", train(first))
    assert sorted(int(path.name.partition("-")[0]) for path in sharing.store.iterdir()) == [1, 2, 3]
    assert begin(experiment(PAIRS["der"][1] | {"seed": 1}), tmp_path / "other", sharing.store) is None
    assert not (tmp_path / "other").exists()
    assert begin(second, tmp_path / "second", sharing.store) == Origin("prefix", "trial-0000", 2)


@pytest.fixture(scope="module")
def half(experiment, splits, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("half")
    running = fit(experiment(SAT_DER), run_dir, ranks=Ranks(0, 1, torch.device("cpu")), splits=splits)
    for _ in range(2):
        next(running)
    running.close()
    return run_dir


@pytest.fixture
def stopped(half, tmp_path):
    """A run that was stopped after two epochs and has left nothing."""
    return Path(shutil.copytree(half, tmp_path / "first"))


@pytest.mark.parametrize("copied", [0, 1])
def test_a_beginning_that_a_kill_cut_short_is_begun_again(
    copied, experiment, train, stopped, alone, sharing, tmp_path, monkeypatch
):
    second, run_dir = experiment(PAIRS["der"][1]), tmp_path / "second"
    leave(experiment(SAT_DER), stopped, sharing, "trial-0000")
    copy, done = checkpoint.copy, []

    def dying(source, target, of):
        if len(done) == copied:
            raise KeyboardInterrupt
        copy(source, target, of)
        done.append(target)

    monkeypatch.setattr(checkpoint, "copy", dying)
    with pytest.raises(KeyboardInterrupt):
        begin(second, run_dir, sharing.store)
    monkeypatch.undo()
    assert begin(second, run_dir, sharing.store) == Origin("prefix", "trial-0000", 2)
    assert (run_dir / RECORDS_FILE).read_text().count("\n") == 2
    list(fit(second, run_dir, ranks=alone))
    assert_same_run(run_dir, train(second))


def test_a_prefix_that_was_not_left_before_a_kill_is_left_when_the_run_goes_on(experiment, stopped, alone, sharing):
    half = sharing.store / f".0002-{prefix_digest(experiment(SAT_DER), 2)}-trial-0000"
    (half / "checkpoints" / "best").mkdir(parents=True)  # a kill while it was written
    rest = list(fit_and_leave(experiment(SAT_DER), stopped, sharing, "trial-0000", ranks=alone))
    assert [record.epoch for record in rest] == [2, 3]
    (prefix,) = sharing.store.iterdir()
    assert [record.epoch for record in read_records(prefix)] == [0, 1]


def test_a_broken_prefix_is_removed_and_left_again_by_the_next_run(experiment, stopped, sharing, tmp_path):
    leave(experiment(SAT_DER), stopped, sharing, "trial-0000")
    (prefix,) = sharing.store.iterdir()
    file = checkpoint.best_folder(prefix) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert begin(experiment(PAIRS["der"][1]), tmp_path / "second", sharing.store) is None
    assert list(sharing.store.iterdir()) == []
    leave(experiment(SAT_DER), stopped, sharing, "trial-0000")
    assert begin(experiment(PAIRS["der"][1]), tmp_path / "second", sharing.store) is not None


def test_of_two_runs_that_leave_the_same_prefix_the_first_counts(experiment, stopped, sharing, tmp_path):
    shutil.copytree(stopped, tmp_path / "twin")
    leave(experiment(SAT_DER), stopped, sharing, "trial-0000")
    leave(experiment(SAT_DER), tmp_path / "twin", sharing, "trial-0001")
    (prefix,) = sharing.store.iterdir()
    assert read_origin(prefix).source == "trial-0000"


def test_a_run_whose_best_epoch_came_later_leaves_no_prefix(experiment, train, stopped, tmp_path):
    later = tmp_path / "later"
    shutil.copytree(stopped, later)
    shutil.rmtree(later / "checkpoints" / "best")
    shutil.copytree(train(experiment(SAT_DER)) / "checkpoints" / "epoch_0003", later / "checkpoints" / "best")
    assert not take_over(later, tmp_path / "copy", experiment(SAT_DER), Origin("prefix", "trial-0000", 2))
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("epochs", "start", "first"), [(4, 0.5, 2), (4, 0.51, 3), (4, 0.0, 0), (4, 1.0, 4), (10, 0.3, 3), (200, 0.145, 29)]
)
def test_a_slot_begins_in_the_first_epoch_whose_fraction_reaches_its_start(epochs, start, first, experiment):
    run = experiment({"method.name": "sat_der", "method.regularizer.start": start, "epochs": epochs})
    assert run.first_epochs == {"regularizer": first}
    assert [epoch / epochs >= start for epoch in range(epochs)] == [epoch >= first for epoch in range(epochs)]


def test_runs_may_part_where_something_begins_in_any_of_them(experiment):
    runs = [
        experiment({"method.name": "mail_at_der", "method.weighting.start": 0.25, "epochs": 8}),
        experiment({"method.name": "sat_der", "method.regularizer.start": 0.5, "epochs": 8}),
        experiment({"method.name": "fgsm_der", "epochs": 8}),
        experiment({"method.name": "sat_awp", "method.weight_perturbation.start": 1.0, "epochs": 8}),
    ]
    assert branching_epochs(runs) == (2, 4, 6)


@pytest.mark.parametrize("change", [{"seed": 1}, {"attack.epsilon": 0.2}, {"epochs": 8}, {"optimizer.momentum": 0.5}])
def test_what_acts_from_the_start_on_makes_another_prefix(change, experiment):
    assert prefix_digest(experiment(SAT_DER), 2) != prefix_digest(experiment(SAT_DER | change), 2)
