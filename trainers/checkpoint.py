"""Checkpoints: weights as safetensors, the rest of the state, the Experiment, and a manifest with checksums.

A checkpoint is a folder, written under another name and renamed when it is complete, so a crash leaves either the
whole or nothing. Reading verifies the checksums; a broken newest checkpoint falls back to the one before.

PyTorch, which takes seconds to import, is imported where there are tensors: drivers only find, verify and copy.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.config import Experiment, parse
from trainers.problems import InvalidInput
from trainers.records import EpochRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

KEEP = 2
_FOLDER, _EPOCH = "checkpoints", "epoch_"
# What file systems say that have no hard links, such as SMB shares and mounted buckets.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_MODEL, _TRAINING, _RECORD, _EXPERIMENT, _MANIFEST = (
    "model.safetensors",
    "training.pt",
    "record.json",
    "experiment.json",
    "manifest.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder. `record` is the epoch that it ends."""

    path: Path
    experiment: Experiment
    record: EpochRecord

    def load_model(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with this checkpoint's weights, in eval mode."""
        from trainers.models.build import build_model

        model = build_model(self.experiment)
        model.load_state_dict(self.weights())
        return model.to(device).eval()

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        from safetensors.torch import load_file

        weights: dict[str, Tensor] = load_file(self.path / _MODEL)
        return weights

    def training_state(self) -> dict[str, Any]:
        """The optimizer's state, and the trained weights where another net is kept.

        Learning rates and random numbers are functions of the epoch: nothing to store.
        """
        import torch

        state: dict[str, Any] = torch.load(self.path / _TRAINING, map_location="cpu", weights_only=True)
        return state


class CorruptCheckpoint(InvalidInput):
    """A checkpoint folder whose files are missing or do not match their checksums."""


def save(
    run_dir: Path, experiment: Experiment, model: nn.Module, state: Mapping[str, Any], record: EpochRecord
) -> Path:
    """Write `checkpoints/epoch_NNNN` atomically, then remove all but the newest `KEEP` and those of `keep_every`.

    Those of later epochs go too: they were broken, or the run would not have come back to this one. Raises OSError if
    it can't be written; what was written of it is removed.
    """
    import torch
    from safetensors.torch import save as serialize

    target = epoch_folder(run_dir, record.epoch)
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    training = io.BytesIO()
    torch.save(dict(state), training)
    _write(target, serialize(weights), training.getvalue(), record, experiment)
    epochs = kept_epochs(run_dir)
    newest = [epoch for epoch in epochs if epoch <= record.epoch][-KEEP:]
    for epoch in epochs:
        if epoch > record.epoch or not (epoch in newest or experiment.keeps(epoch)):
            shutil.rmtree(epoch_folder(run_dir, epoch))
    for abandoned in target.parent.glob(".writing-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    return target


def copy(source: Checkpoint, target: Path, experiment: Experiment) -> None:
    """The same state in another folder as a checkpoint of another experiment, written like any other.

    For runs that are one up to this epoch. No hard links: what breaks one file must not break the other.
    """
    weights, training = ((source.path / name).read_bytes() for name in (_MODEL, _TRAINING))
    _write(target, weights, training, source.record, experiment)


def epoch_folder(run_dir: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies while it is kept."""
    return run_dir / _FOLDER / f"{_EPOCH}{epoch:04d}"


def kept_epochs(run_dir: Path) -> list[int]:
    """Epochs (0-based, rising) whose checkpoints lie in a run folder, whole or broken."""
    numbers = (path.name.removeprefix(_EPOCH) for path in (run_dir / _FOLDER).glob(f"{_EPOCH}*"))
    return sorted(int(number) for number in numbers if number.isdigit())


def best_folder(run_dir: Path) -> Path:
    """Where the checkpoint of the best epoch so far lies."""
    return run_dir / _FOLDER / "best"


def mark_best(run_dir: Path, source: Path) -> None:
    """Make `checkpoints/best` a copy of `source` (hard links where there are any: no second copy on the disk)."""
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=run_dir / _FOLDER))
    for file in source.iterdir():
        try:
            os.link(file, staging / file.name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(file, staging / file.name)
    _publish(staging, best_folder(run_dir))


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises CorruptCheckpoint, saying which file is at fault, and InvalidInput for one whose experiment has other fields
    than those of this version, or names an extension that is not installed.
    """
    manifest_file = path / _MANIFEST
    try:
        manifest = json.loads(manifest_file.read_text())
        for name in (_MODEL, _TRAINING, _RECORD, _EXPERIMENT):
            if _sha256(path / name) != manifest["sha256"][name]:
                raise CorruptCheckpoint.single(str(path), f"{name} does not match its checksum")
        raw = json.loads((path / _EXPERIMENT).read_text())
        record = EpochRecord.from_json((path / _RECORD).read_text())
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptCheckpoint.single(str(path), f"is not a complete checkpoint ({error})") from error
    try:
        return Checkpoint(path, parse(raw), record)
    except InvalidInput as error:
        problems = "; ".join(map(str, error.problems))
        raise InvalidInput.single(
            str(path), f"is of an experiment that this version does not know ({problems})"
        ) from error


def latest(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole, or None. Says so in the log if it had to go back."""
    for epoch in reversed(kept_epochs(run_dir)):
        try:
            return load(epoch_folder(run_dir, epoch))
        except CorruptCheckpoint as error:
            logger.warning("skipping a broken checkpoint: %s", error)
    return None


def _write(target: Path, weights: bytes, training: bytes, record: EpochRecord, experiment: Experiment) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    contents = {
        _MODEL: weights,
        _TRAINING: training,
        _RECORD: f"{record.to_json()}\n".encode(),
        _EXPERIMENT: f"{json.dumps(experiment.to_dict(), indent=1)}\n".encode(),
    }
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[_MANIFEST] = f"{json.dumps({'sha256': sums}, indent=1)}\n".encode()
    try:
        # Written by Python and not by the libraries, whose errors do not say that the disk is full.
        for name, content in contents.items():
            (staging / name).write_bytes(content)
        _publish(staging, target)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _publish(staging: Path, target: Path) -> None:
    for file in staging.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
        os.rename(target, aside / "old")
        os.rename(staging, target)
        shutil.rmtree(aside)
    else:
        os.rename(staging, target)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
