"""Checkpoints come back bit for bit, and a broken one is noticed, named and stepped over."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest
import torch

from trainers import checkpoint
from trainers.models.build import build_model
from trainers.problems import InvalidInput
from trainers.records import EpochRecord


@pytest.fixture(scope="module")
def settings(experiment):
    return experiment({"method.name": "trades_der", "attack.epsilon": "8/255"})


@pytest.fixture(scope="module")
def model(settings):
    return build_model(settings)


@pytest.fixture
def save(settings, model, tmp_path):
    """`save(epoch)` writes a checkpoint of this module's model into the test's run folder."""
    state = {"optimizer": {"momentum": torch.randn(5, generator=torch.Generator().manual_seed(0)), "step": 3}}
    return lambda epoch: checkpoint.save(tmp_path, settings, model, state, EpochRecord(epoch, 1.5, {"loss": 1 / 3}))


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    file.write_bytes(content)


def folders(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_everything_comes_back_bit_for_bit(save, settings, model):
    loaded = checkpoint.load(save(4))
    assert loaded.experiment == settings
    assert loaded.experiment.attack.epsilon.text == "8/255"
    assert loaded.record == EpochRecord(4, 1.5, {"loss": 1 / 3})
    assert all(torch.equal(loaded.weights()[name], value) for name, value in model.state_dict().items())
    assert loaded.weights().keys() == model.state_dict().keys()
    state = loaded.training_state()["optimizer"]
    assert torch.equal(state["momentum"], torch.randn(5, generator=torch.Generator().manual_seed(0)))
    assert state["step"] == 3


def test_a_loaded_model_answers_like_the_saved_one_in_eval_mode(save, model, digits):
    loaded = checkpoint.load(save(0)).load_model()
    assert not any(module.training for module in loaded.modules())
    model.eval()
    assert torch.equal(loaded(digits[0]), model(digits[0]))


@pytest.mark.parametrize("broken", ["model.safetensors", "training.pt", "record.json", "experiment.json"])
def test_a_flipped_bit_is_found_and_the_file_is_named(broken, save):
    folder = save(0)
    flip_a_bit(folder / broken)
    with pytest.raises(checkpoint.CorruptCheckpoint, match=f"{folder}: {broken} does not match its checksum"):
        checkpoint.load(folder)


@pytest.mark.parametrize("missing", ["model.safetensors", "manifest.json"])
def test_a_missing_file_is_named(missing, save):
    folder = save(0)
    (folder / missing).unlink()
    with pytest.raises(checkpoint.CorruptCheckpoint, match=missing):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "content", [b"", b'{"sha256": {', b"\xff\xfe\x00", b"[]", b"{}", b'{"sha256": {}}', b'{"sha256": 3}']
)
def test_a_manifest_that_is_none_is_a_corrupt_checkpoint(content, save):
    folder = save(0)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(checkpoint.CorruptCheckpoint, match="is not a complete checkpoint"):
        checkpoint.load(folder)


@pytest.mark.parametrize("broken", ["model.safetensors", "manifest.json"])
def test_the_latest_is_the_newest_that_is_whole(broken, save, tmp_path, caplog):
    save(7)
    flip_a_bit(save(8) / broken)
    assert checkpoint.latest(tmp_path).record.epoch == 7
    assert "epoch_0008" in caplog.text


def test_a_run_without_a_whole_checkpoint_has_no_latest(save, tmp_path):
    assert checkpoint.latest(tmp_path) is None
    flip_a_bit(save(0) / "training.pt")
    assert checkpoint.latest(tmp_path) is None


def test_the_newest_two_and_the_best_are_kept(save, tmp_path):
    for epoch in range(5):
        folder = save(epoch)
        if epoch == 1:
            checkpoint.mark_best(tmp_path, folder)
    assert folders(tmp_path) == ["best", "epoch_0003", "epoch_0004"]
    assert checkpoint.load(tmp_path / "checkpoints" / "best").record.epoch == 1
    checkpoint.mark_best(tmp_path, folder)
    assert checkpoint.load(tmp_path / "checkpoints" / "best").record.epoch == 4


def test_epochs_are_kept_by_number_however_many_digits_it_has(save, tmp_path):
    assert checkpoint.kept_epochs(tmp_path) == []
    for epoch in (9998, 9999, 10000):
        checkpoint.mark_best(tmp_path, save(epoch))
    assert checkpoint.kept_epochs(tmp_path) == [9999, 10000]
    assert checkpoint.latest(tmp_path).record.epoch == 10000
    save(9999)
    (tmp_path / "checkpoints" / "epoch_9998.broken").mkdir()  # put aside by someone
    assert checkpoint.kept_epochs(tmp_path) == [9999]


def test_those_of_later_epochs_go_also_where_every_epoch_is_kept(experiment, model, tmp_path):
    for epoch in (0, 1, 2, 3, 1):
        checkpoint.save(tmp_path, experiment({"keep_every": 1}), model, {}, EpochRecord(epoch, 1.0, {}))
    assert checkpoint.kept_epochs(tmp_path) == [0, 1]


def test_what_a_crash_left_half_written_is_no_checkpoint_and_is_swept_away(save, tmp_path):
    half = tmp_path / "checkpoints" / ".writing-abc"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) is None
    save(0)
    assert folders(tmp_path) == ["epoch_0000"]


def test_saving_an_epoch_again_replaces_it(save, tmp_path):
    flip_a_bit(save(0) / "model.safetensors")
    assert checkpoint.load(save(0)).record.epoch == 0
    assert folders(tmp_path) == ["epoch_0000"]


def test_a_checkpoint_of_another_version_is_named_with_what_is_not_known(save):
    folder = save(0)
    content = json.loads((folder / "experiment.json").read_text())
    content["method"]["inner"] = {"name": "pgd_of_tomorrow"}
    (folder / "experiment.json").write_text(json.dumps(content))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["experiment.json"] = hashlib.sha256((folder / "experiment.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match=rf"{folder}: is of an experiment .*\(method\.inner\.name: unknown inner"):
        checkpoint.load(folder)


@pytest.mark.parametrize(("field", "value"), [("seed", 1), ("epochs", 0)])
def test_an_altered_experiment_is_refused(field, value, save):
    file = save(0) / "experiment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(InvalidInput, match=r"experiment\.json does not match its checksum"):
        checkpoint.load(file.parent)


def test_the_best_is_a_copy_where_the_file_system_has_no_hard_links(save, tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    checkpoint.mark_best(tmp_path, save(3))
    assert checkpoint.load(checkpoint.best_folder(tmp_path)).record.epoch == 3


def test_what_a_full_disk_leaves_of_a_best_is_swept_away_and_the_best_before_stays(save, tmp_path, monkeypatch):
    checkpoint.mark_best(tmp_path, save(0))

    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    folder = save(1)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.mark_best(tmp_path, folder)
    assert checkpoint.load(checkpoint.best_folder(tmp_path)).record.epoch == 0
    save(2)
    assert folders(tmp_path) == ["best", "epoch_0001", "epoch_0002"]
