"""Which networks a lens compares: checkpoints of ours, weights of others, and the stored epochs of a run."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.evaluation.subjects import Foreign, Subject, foreign_subject, own_subjects
from orchestrator.records.runs import Run
from orchestrator.report.labels import method_label
from trainers import catalog
from trainers.config import Data
from trainers.problems import InvalidInput, Problem, unknown_name
from trainers.records import read_records

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from trainers.data.images import ImageSet


@dataclass(frozen=True)
class Network:
    """One network by the name that it has in figures. `run` has the records of training, where there are any.

    `epoch` (from 0) is given for a stored epoch of a run that is followed through its training.
    """

    name: str
    subject: Subject
    run: Run | None = None
    epoch: int | None = None

    @property
    def data(self) -> Data:
        """The data that it is for."""
        return self.subject.experiment.data


def choose_networks(
    words: Sequence[str], *, checkpoint: str | None, foreign: Foreign, data_dir: Path | None
) -> list[Network]:
    """`[NAME=]PATH` words as networks: folders are ours, files are weights of others. Raises InvalidInput."""
    if not words and foreign.model is None:
        raise InvalidInput.single("CHECKPOINT", "is missing: run folders, checkpoint folders, or files of weights")
    if checkpoint not in (None, "best", "last"):
        raise InvalidInput.single("--checkpoint", unknown_name(checkpoint, ("best", "last"), "checkpoint"))
    named = [_split(word) for word in words]
    if foreign.model is not None and named and all(path.is_dir() for _, path in named):
        raise InvalidInput.single("--model", f"{foreign.model}: no file of weights is given that it could be for")
    if checkpoint is not None and named and not any(_is_run(path) for _, path in named):
        raise InvalidInput.single("--checkpoint", f"{checkpoint}: is for run folders, and none is given")
    subjects = [
        own_subjects(path, checkpoint if _is_run(path) else None, data_dir)[0]
        if path.is_dir()
        else _foreign(path, foreign, data_dir)
        for _, path in named
    ]
    if not words:  # a factory with weights of its own
        named, subjects = [(None, Path(str(foreign.model)))], [_foreign(None, foreign, data_dir)]
    names = _names([(given, path, subject) for (given, path), subject in zip(named, subjects, strict=True)])
    networks = [
        Network(name, subject, _run(path, subject) if _is_run(path) else None)
        for name, (_, path), subject in zip(names, named, subjects, strict=True)
    ]
    _check_comparable(networks, foreign.data)
    return networks


def stored_epochs(networks: Sequence[Network], wanted: str, data_dir: Path | None) -> list[Network]:
    """The stored epochs of every run among `networks`: `all`, or numbers from 1 with commas. Raises InvalidInput."""
    from trainers.checkpoint import epoch_folder, kept_epochs

    found = []
    for network in networks:
        if network.run is None:
            continue
        available = [epoch + 1 for epoch in kept_epochs(network.run.folder)]
        chosen = available if wanted == "all" else _numbers(wanted)
        missing = [epoch for epoch in chosen if epoch not in available]
        if missing:
            raise InvalidInput.single(
                "--epochs", f"{', '.join(map(str, missing))}: {network.run.folder} has the epochs "
                f"{', '.join(map(str, available))}; keep_every=N keeps more while training"
            )  # fmt: skip
        for epoch in chosen:
            (subject,) = own_subjects(epoch_folder(network.run.folder, epoch - 1), None, data_dir)
            found.append(Network(network.name, subject, network.run, epoch - 1))
    if not found:
        raise InvalidInput.single("--epochs", f"{wanted}: none of the networks is a run folder with stored epochs")
    return found


def identity(network: Network, images: ImageSet, console: Console, *, gradients: bool) -> str:
    """The `network_digest` of a network that has passed `check_network`."""
    from trainers.ranks import Ranks

    subject = network.subject
    model = subject.load().to(Ranks.current().device)
    check_network(network, model, images, console, gradients=gradients)
    architecture = subject.foreign.architecture if subject.foreign else subject.experiment.model.model_dump_json()
    return network_digest(architecture, model, images)


def check_network(network: Network, model: nn.Module, images: ImageSet, console: Console, *, gradients: bool) -> None:
    """Raise InvalidInput for a `model` whose answers, or whose `gradients` where they are followed, could not be used.

    Prints what makes them doubtful.
    """
    from trainers.evaluation.classifier import check_classifier
    from trainers.ranks import Ranks

    num_classes = catalog.DATASETS[network.subject.experiment.data.name].num_classes
    some = images.floats(0, 8).to(Ranks.current().device)
    try:
        warnings = check_classifier(model, some, num_classes, gradients=gradients)
    except InvalidInput as error:
        raise InvalidInput.single(network.name, str(error)) from error
    for warning in warnings:
        console.print(f"{network.name}: warning: {warning}", style="yellow", soft_wrap=True)


def network_digest(architecture: str, model: nn.Module, images: ImageSet) -> str:
    """A name for what this network does with these images, from what both are and not where they lie.

    The same weights are other functions with another stride or normalization, so the architecture counts.
    """
    from trainers.foreign.weights import weights_digest

    digest = hashlib.sha256(f"{architecture} {weights_digest(model)}".encode())
    for array in (images.images, images.labels):
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()


def file_name(text: str) -> str:
    """A name for a file: letters, digits and minus."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "network"


def _split(word: str) -> tuple[str | None, Path]:
    """A name may hold a `=` itself: what follows the first one behind which something lies is the path."""
    if Path(word).exists() or not word.partition("=")[0] or "=" not in word:
        return None, Path(word)
    parts = word.split("=")
    splits = [("=".join(parts[:place]), Path("=".join(parts[place:]))) for place in range(1, len(parts))]
    return next((split for split in splits if split[1].exists()), splits[0])


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise InvalidInput.single("--epochs", f"{text!r}: allowed: all, or epochs from 1 on such as 1,5,30")
    return sorted({int(part) for part in text.split(",")})


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def _run(path: Path, subject: Subject) -> Run:
    """A run folder as the report's figures read it."""
    return Run(path.name, "trial", 0, {}, subject.experiment, path.absolute(), records=tuple(read_records(path)))


def _foreign(weights: Path | None, foreign: Foreign, data_dir: Path | None) -> Subject:
    if weights is not None and not weights.exists():
        raise InvalidInput.single(str(weights), "no such run folder, checkpoint folder or file of weights")
    return foreign_subject(weights, foreign, data_dir)


def _names(found: Sequence[tuple[str | None, Path, Subject]]) -> list[str]:
    """As given; else the method of ours or the stem of a file, with the folder's name where that is not unique."""
    short = [
        given or (method_label(subject.experiment) if subject.foreign is None else path.stem)
        for given, path, subject in found
    ]
    counts = Counter(short)
    names = [
        f"{name} ({path.name})" if counts[name] > 1 and given is None else name
        for name, (given, path, _) in zip(short, found, strict=True)
    ]
    files = Counter(map(file_name, names))
    twice = sorted({name for name in names if files[file_name(name)] > 1})
    if twice:
        raise InvalidInput.single("CHECKPOINT", f"{', '.join(twice)}: names two networks, or two files; say NAME=PATH")
    return names


def _check_comparable(networks: Sequence[Network], data: str | None) -> None:
    """Raise InvalidInput unless all networks see the same images."""
    sets = {network.name: _data_text(network.subject) for network in networks}
    problems = []
    if len(set(sets.values())) > 1:
        listed = ", ".join(f"{name}: {text}" for name, text in sets.items())
        problems.append(Problem("CHECKPOINT", f"networks of different data can't share attacks ({listed})"))
    elif data is not None and data.partition(":")[0] != networks[0].subject.experiment.data.name:
        problems.append(Problem("--data", f"{data}: the networks are for {next(iter(sets.values()))}"))
    if problems:
        raise InvalidInput(problems)


def _data_text(subject: Subject) -> str:
    data = subject.experiment.data
    return f"{data.name} {data.size}x{data.size}"
