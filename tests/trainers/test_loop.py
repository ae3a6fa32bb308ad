"""A run that is stopped, broken and resumed ends as one that was left alone."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.recorded import timeless
from trainers import checkpoint
from trainers.loop import fit
from trainers.problems import InvalidInput
from trainers.records import RECORDS_FILE, EpochRecord, append_record, read_records
from trainers.run_folder import TakenOver
from trainers.step import StepResult
from trainers.totals import Diverged, EpochTotals

RUNS = {
    "fgsm_rs_der": {"method.name": "fgsm_rs_der", "data.augment": True},
    "weat_adv": {"method.name": "weat_adv", "attack.steps": 2, "model.norm": "group"},
    "averaged": {
        "method.name": "sat_awp",
        "attack.steps": 2,
        "attack.warmup_epochs": 2,
        "optimizer.ema_decay": 0.9,
        "optimizer.momentum_at_peak": 0.5,
        "precision": "bfloat16",
    },
}


def final_weights(run_dir):
    return checkpoint.latest(run_dir).weights()


def same_weights(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module", params=RUNS)
def uninterrupted(request, experiment, splits, tmp_path_factory):
    """(settings, records, final weights) of a run of three epochs that nothing disturbed."""
    from trainers.ranks import Ranks

    run_dir = tmp_path_factory.mktemp(request.param)
    settings = experiment(RUNS[request.param])
    records = list(fit(settings, run_dir, ranks=Ranks(0, 1, torch.device("cpu")), splits=splits))
    return settings, records, final_weights(run_dir)


@pytest.fixture
def stopped(uninterrupted, splits, alone, tmp_path):
    """`stopped(epochs)`: a folder in which the same run was stopped after that many epochs."""

    def run(epochs):
        running = fit(uninterrupted[0], tmp_path, ranks=alone, splits=splits)
        for _ in range(epochs):
            next(running)
        running.close()
        return tmp_path

    return run


def test_training_learns_and_says_one_record_an_epoch(uninterrupted):
    _, records, _ = uninterrupted
    assert [record.epoch for record in records] == [0, 1, 2]
    assert records[-1].metrics["train/loss"] < records[0].metrics["train/loss"]
    assert all(torch.isfinite(torch.tensor(list(record.metrics.values()))).all() for record in records)


def test_every_step_has_its_own_rate_and_momentum(experiment, splits, alone, tmp_path):
    triangle = {"schedule": {"name": "triangular", "peak": 0.5}, "optimizer.momentum_at_peak": 0.5, "epochs": 2}
    records = list(fit(experiment({"method.name": "fgsm"} | triangle), tmp_path, ranks=alone, splits=splits))
    # Four steps an epoch: the fourth of all lies at 4/9 of the run, the eighth at 8/9.
    assert [record.metrics["train/learning_rate"] for record in records] == pytest.approx([0.05 * 8 / 9, 0.05 * 2 / 9])
    (last,) = checkpoint.latest(tmp_path).training_state()["optimizer"]["param_groups"]
    assert (last["lr"], last["momentum"]) == pytest.approx((0.05 * 2 / 9, 0.9 - 0.4 * 2 / 9))


@pytest.mark.parametrize("epochs", [1, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(epochs, uninterrupted, stopped, splits, alone):
    settings, records, weights = uninterrupted
    run_dir = stopped(epochs)
    resumed = list(fit(settings, run_dir, ranks=alone, splits=splits))
    assert timeless(resumed) == timeless(records[epochs:])
    assert timeless(read_records(run_dir)) == timeless(records)
    assert same_weights(final_weights(run_dir), weights)


@pytest.mark.parametrize("newest_only", [True, False], ids=["newest", "all"])
def test_a_run_with_broken_checkpoints_ends_equal_and_records_each_epoch_once(
    newest_only, uninterrupted, stopped, splits, alone
):
    settings, records, weights = uninterrupted
    run_dir = stopped(2)
    for epoch in (1,) if newest_only else (0, 1):
        file = run_dir / "checkpoints" / f"epoch_000{epoch}" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    with open(run_dir / RECORDS_FILE, "a") as journal:
        journal.write('{"epoch": 2, "ti')
    first, second = read_records(run_dir)
    list(fit(settings, run_dir, ranks=alone, splits=splits))
    assert same_weights(final_weights(run_dir), weights)
    assert timeless(read_records(run_dir)) == timeless(records)
    assert (run_dir / RECORDS_FILE).read_text().count("\n") == 3
    assert read_records(run_dir)[:2] == [first, second]


def test_a_run_whose_checkpoints_are_all_broken_begins_again(uninterrupted, stopped, splits, alone):
    settings, records, weights = uninterrupted
    run_dir = stopped(3)
    for epoch in (1, 2):
        file = run_dir / "checkpoints" / f"epoch_000{epoch}" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    resumed = fit(settings, run_dir, ranks=alone, splits=splits)
    next(resumed)
    # What is written now is the newest, whatever its number: the next interruption loses nothing.
    assert [path.name for path in (run_dir / "checkpoints").glob("epoch_*")] == ["epoch_0000"]
    resumed.close()
    list(fit(settings, run_dir, ranks=alone, splits=splits))
    assert same_weights(final_weights(run_dir), weights)
    assert timeless(read_records(run_dir)) == timeless(records)


def test_a_finished_run_says_its_last_record_again(uninterrupted, stopped, splits, alone):
    run_dir = stopped(3)
    before = (run_dir / RECORDS_FILE).read_text()
    assert list(fit(uninterrupted[0], run_dir, ranks=alone, splits=splits)) == read_records(run_dir)[-1:]
    assert (run_dir / RECORDS_FILE).read_text() == before


def test_the_best_checkpoint_is_the_first_most_robust_epoch(uninterrupted, stopped):
    best = checkpoint.load(stopped(3) / "checkpoints" / "best").record
    assert best.epoch == max(uninterrupted[1], key=lambda record: record.metrics["val/pgd10_accuracy"]).epoch


@pytest.mark.parametrize("crash", ["before the best was marked", "before the record was written", "broken on the disk"])
def test_the_best_checkpoint_survives_a_crash_in_its_epoch(crash, experiment, splits, alone, tmp_path):
    settings = experiment({"epochs": 1})
    list(fit(settings, tmp_path, ranks=alone, splits=splits))
    best = tmp_path / "checkpoints" / "best"
    if crash == "broken on the disk":
        with open(best / "model.safetensors", "r+b") as file:  # a hard link: the epoch's own checkpoint breaks too
            file.truncate(100)
    else:
        (tmp_path / RECORDS_FILE).unlink()
    if crash == "before the best was marked":
        best.rename(tmp_path / "elsewhere")
    list(fit(settings, tmp_path, ranks=alone, splits=splits))
    assert checkpoint.load(best).record == read_records(tmp_path)[0]


def test_a_run_that_is_finished_is_not_set_up_again(uninterrupted, stopped, alone, monkeypatch):
    settings = uninterrupted[0]
    run_dir = stopped(settings.epochs)
    for what in ("load_splits", "Networks"):
        monkeypatch.setattr(f"trainers.loop.{what}", None)
    assert list(fit(settings, run_dir, ranks=alone)) == read_records(run_dir)[-1:]


def test_a_record_that_a_crash_lost_is_written_from_its_checkpoint(uninterrupted, stopped, splits, alone):
    run_dir = stopped(2)
    first, second = read_records(run_dir)
    (run_dir / RECORDS_FILE).unlink()
    append_record(run_dir, first)
    list(fit(uninterrupted[0], run_dir, ranks=alone, splits=splits))
    assert read_records(run_dir)[:2] == [first, second]


def test_a_folder_of_another_experiment_is_refused(stopped, experiment, splits, alone):
    run_dir = stopped(1)
    with pytest.raises(InvalidInput, match="holds another experiment"):
        next(fit(experiment({"seed": 7}), run_dir, ranks=alone, splits=splits))


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_folder_that_does_not_say_what_it_holds_is_named(text, uninterrupted, stopped, splits, alone):
    run_dir = stopped(1)
    (run_dir / "digest.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"digest\.json: is broken.*remove the file"):
        next(fit(uninterrupted[0], run_dir, ranks=alone, splits=splits))
    (run_dir / "digest.json").unlink()
    assert next(fit(uninterrupted[0], run_dir, ranks=alone, splits=splits)).epoch == 1


def test_without_resuming_a_folder_in_use_is_refused(uninterrupted, stopped, splits, alone):
    with pytest.raises(InvalidInput, match="holds this experiment already"):
        next(fit(uninterrupted[0], stopped(1), ranks=alone, splits=splits, resume=False))


def test_a_diverging_run_says_in_which_epoch_and_step(experiment, splits, alone, tmp_path):
    # Rate times decay is 9: every step multiplies the weights by -8, until float32 overflows.
    settings = experiment(
        {"optimizer.learning_rate": 10, "optimizer.weight_decay": 0.9, "optimizer.batch_size": 8}
        | {"schedule.name": "constant"}
    )
    records = []
    with pytest.raises(Diverged) as caught:
        records += fit(settings, tmp_path, ranks=alone, splits=splits)
    epoch, step = map(int, re.search(r"not finite at epoch (\d+), step (\d+)", str(caught.value)).groups())
    assert epoch == len(read_records(tmp_path)) + 1
    assert 1 < step <= 256 // 8


def test_an_epochs_totals_are_means_over_its_steps_or_over_its_images(alone):
    totals = EpochTotals(alone, 4, comparable=True)
    for step in (1.0, 2.0):
        totals.add(StepResult(*(torch.tensor(step * factor) for factor in range(1, 7))))
    assert totals.metrics(0, None) == {
        "train/loss": 3 / 2,
        "train/adversarial_accuracy": 6 / 8,
        "train/abnormal_count": 9,
        "train/abnormal_fraction": 9 / 8,
        "train/weight/mean": 12 / 8,
        "train/regularizer": 15 / 2,
        "train/perturbation_norm/mean": 18 / 8,
    }


def test_a_divergence_is_told_with_few_numbers(alone):
    """It is a line of a terminal and a cell of a table."""
    totals = EpochTotals(alone, 2, comparable=False)
    totals.add(StepResult(torch.tensor(torch.nan), *[torch.zeros(())] * 5))
    energies = {
        f"{split}/{kind}_energy/mean": -12.345678 for split in ("val", "probe") for kind in ("natural", "joint")
    }
    with pytest.raises(Diverged) as caught:
        totals.metrics(4, EpochRecord(3, 0.0, energies))
    assert str(caught.value) == (
        "the loss is not finite at epoch 5, step 1; energies in nats after the epoch before: "
        "val/natural_energy/mean -12.35"
    )


def test_adversarial_examples_of_a_robust_net_have_the_higher_energy(experiment, splits, alone, tmp_path):
    settings = experiment({"method.name": "sat", "attack.steps": 5, "optimizer.batch_size": 32, "epochs": 5})
    for record in fit(settings, tmp_path, ranks=alone, splits=splits):
        assert record.metrics["probe/delta_energy/mean"] < 0
        assert record.metrics["probe/delta_joint_energy/mean"] < 0


@pytest.mark.parametrize(
    ("method", "steps", "counted"),
    [
        ("sat", 2, [True, True]),
        ("trades", 2, [False, False]),
        ({"name": "trades_der", "regularizer": {"samples": "abnormal", "start": 0}}, 2, [True, True]),
        ({"name": "trades_der", "regularizer": {"samples": "abnormal", "start": 0.5}}, 2, [False, True]),
        ({"name": "aaer", "weight_perturbation": {"name": "awp", "start": 0.5}}, 1, [True, True]),
        ({"name": "fgsm_rs", "weight_perturbation": {"name": "awp", "start": 0.5}}, 1, [True, False]),
    ],
)
def test_abnormal_examples_are_counted_where_start_and_end_of_the_attack_are_seen_alike(
    method, steps, counted, experiment, splits, alone, tmp_path
):
    """By the same weights in the same batch-norm mode; a regularizer of abnormal examples has the start seen again."""
    settings = experiment({"method": method, "attack.steps": steps, "epochs": 2})
    records = list(fit(settings, tmp_path, ranks=alone, splits=splits))
    assert ["train/abnormal_fraction" in record.metrics for record in records] == counted


def test_every_epoch_attacks_with_noise_of_its_own(experiment, splits, alone, tmp_path):
    one = splits.train.select(np.zeros(64, dtype=int))  # one image over and over: its order in the batch is nothing
    still = {"optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0, "schedule.name": "constant"}
    settings = experiment({"method.name": "fgsm_rs", "model.norm": "group"} | still)
    losses = [r.metrics["train/loss"] for r in fit(settings, tmp_path, ranks=alone, splits=replace(splits, train=one))]
    assert len(set(losses)) == 3


def test_the_global_random_state_is_left_alone(experiment, splits, alone, tmp_path):
    before = torch.get_rng_state()
    list(fit(experiment({"epochs": 1}), tmp_path, ranks=alone, splits=splits))
    assert torch.equal(torch.get_rng_state(), before)


def test_who_was_given_up_writes_no_more_once_another_process_trains_the_run(experiment, splits, alone, tmp_path):
    """A node that is cut off from the cluster may still reach the storage, and goes on in the old folder."""
    settings = experiment({"method.name": "fgsm_rs", "epochs": 4})
    given_up = fit(settings, tmp_path / "run", ranks=alone, splits=splits)
    next(given_up)
    successor = fit(settings, tmp_path / "run", ranks=alone, splits=splits)
    next(successor)
    with pytest.raises(TakenOver, match="run is trained by another process now"):
        next(given_up)
    list(successor)
    records = list(fit(settings, tmp_path / "alone", ranks=alone, splits=splits))
    assert timeless(read_records(tmp_path / "run")) == timeless(records)
    assert same_weights(final_weights(tmp_path / "run"), final_weights(tmp_path / "alone"))
