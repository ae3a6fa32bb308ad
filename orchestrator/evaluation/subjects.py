"""What `orchestrator evaluate` can attack: checkpoints of ours, weights of others, models of the user's own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.evaluation.protocols import checkpoint_folder
from trainers import catalog
from trainers.config import Experiment, apply_overrides, apply_values, parse
from trainers.evaluation.result import ForeignModel
from trainers.problems import InvalidInput, unknown_name

if TYPE_CHECKING:
    from torch import nn

NORMALIZATIONS = ("standard", "half", "none", "checkpoint")
Checkpoint = Literal["best", "last"]
_CHECKPOINTS: tuple[Checkpoint, ...] = ("best", "last")
_SAY_MODEL = "is a file of weights: say --model, --data and --normalization"


@dataclass(frozen=True)
class Subject:
    """A model to attack. `checkpoint` is the one that was asked for of a run folder, `epoch` counts from 0.

    Of a foreign model's `experiment` only the data and the evaluation's ε are meant.
    """

    source: str
    experiment: Experiment
    load: Callable[[], nn.Module]
    experiment_digest: str | None = None
    epoch: int | None = None
    checkpoint: Checkpoint | None = None
    foreign: ForeignModel | None = None

    @property
    def protocol_checkpoint(self) -> str:
        """As a protocol has it: best, last, `epoch 7` (protocols that are on disk count from 0), or weights."""
        return "weights" if self.foreign is not None else self.checkpoint or f"epoch {self.epoch}"


@dataclass(frozen=True)
class Foreign:
    """The options for models that are not ours; they hold for every file of weights that is given."""

    model: str | None = None
    options: tuple[str, ...] = ()
    data: str | None = None
    normalization: str | None = None
    allow_code: bool = False


def choose_subjects(
    path: Path | None, checkpoint: str | None, foreign: Foreign, data_dir: Path | None
) -> list[Subject]:
    """The models that the options of the command line name. Raises InvalidInput for options that contradict."""
    if foreign.model is not None:
        if checkpoint is not None:
            raise InvalidInput.single("--checkpoint", f"{checkpoint}: is for run folders, not for --model")
        return [foreign_subject(path, foreign, data_dir)]
    given = {
        "--model-option": foreign.options, "--data": foreign.data, "--normalization": foreign.normalization,
        "--allow-code": foreign.allow_code,
    }  # fmt: skip
    for option, value in given.items():
        if value:
            raise InvalidInput.single(option, "is for models that are not ours: say --model")
    if path is None:
        raise InvalidInput.single("PATH", "is missing: a run folder, a checkpoint folder, or --model with a factory")
    return own_subjects(path, checkpoint, data_dir)


def own_subjects(path: Path, checkpoint: str | None, data_dir: Path | None) -> list[Subject]:
    """A checkpoint folder by its epoch; of a run folder the best epoch, the last, or both; by default the best."""
    allowed = (*_CHECKPOINTS, "both")
    if checkpoint is not None and checkpoint not in allowed:
        raise InvalidInput.single("--checkpoint", unknown_name(checkpoint, allowed, "checkpoint"))
    if (path / "checkpoints").is_dir():
        wanted = [name for name in _CHECKPOINTS if (checkpoint or "best") in (name, "both")]
        return [_own(checkpoint_folder(path, name), name, data_dir) for name in wanted]
    if not path.exists():
        raise InvalidInput.single(str(path), "no such run folder, checkpoint folder or file of weights")
    if path.is_file():
        raise InvalidInput.single(str(path), _SAY_MODEL)
    if (path / "trials").is_dir():
        raise InvalidInput.single(str(path), f"is the folder of a study: name one of its runs, e.g. {path}/trials/0000")
    if checkpoint is not None:
        raise InvalidInput.single(
            "--checkpoint", f"{checkpoint}: {path} is no run folder, there is nothing to choose from"
        )
    return [_own(path, None, data_dir)]


def _own(folder: Path, checkpoint: Checkpoint | None, data_dir: Path | None) -> Subject:
    from trainers.checkpoint import load

    opened = load(folder.absolute())  # it may be loaded again by a Ray worker, which has another working directory
    experiment = opened.experiment
    if data_dir is not None:
        data = experiment.data.model_copy(update={"directory": str(data_dir.absolute())})
        experiment = experiment.model_copy(update={"data": data})
    epoch = opened.record.epoch
    source = f"{folder}, epoch {epoch + 1}"
    return Subject(source, experiment, opened.load_model, experiment.digest(), epoch, checkpoint)


def foreign_subject(weights: Path | None, foreign: Foreign, data_dir: Path | None) -> Subject:
    """Weights in an architecture of the catalog, or a factory `file.py:function` with weights or without.

    Its data are a data set's name, or `digits:8` for digits at 8x8. The model is loaded at once: its weights are its
    name. Raises InvalidInput.
    """
    model, data = foreign.model, foreign.data
    if model is None:
        raise InvalidInput.single(str(weights), _SAY_MODEL)
    if data is None:
        raise InvalidInput.single("--data", f"is missing; allowed with --model: {', '.join(sorted(catalog.DATASETS))}")
    made = ".py" in model
    name, _, size = data.partition(":")
    words = [f"data.name={name}", *([f"data.size={size}"] if size else [])]
    if not made:
        words += [f"model.name={model}", *(f"model.{option}" for option in foreign.options)]
    raw = apply_overrides({}, words)
    if data_dir is not None:
        raw = apply_values(raw, {"data.directory": str(data_dir.absolute())})
    experiment = parse(raw)
    network, architecture = (
        _from_factory(weights, model, foreign) if made else _from_catalog(weights, experiment, foreign.normalization)
    )
    from trainers.foreign.weights import weights_digest

    found = ForeignModel(architecture, weights_digest(network))
    source = f"{architecture}, weights {weights or 'of its own'} (sha256 {found.weights[:12]})"
    return Subject(source, experiment, lambda: network, foreign=found)


def _from_factory(weights: Path | None, model: str, foreign: Foreign) -> tuple[nn.Module, str]:
    for option, given in (("--model-option", foreign.options), ("--normalization", foreign.normalization)):
        if given:
            raise InvalidInput.single(option, f"{given}: a factory takes nothing; it is a matter of its own code")
    from trainers.foreign.factory import factory_architecture, factory_model

    return factory_model(model, weights, allow_code=foreign.allow_code), factory_architecture(model)


def _from_catalog(weights: Path | None, experiment: Experiment, normalization: str | None) -> tuple[nn.Module, str]:
    if weights is None:
        raise InvalidInput.single("--model", f"{experiment.model.name} has no weights of its own: give a file of them")
    if normalization not in NORMALIZATIONS:
        problem = "must be stated" if normalization is None else f"{normalization!r} is unknown"
        raise InvalidInput.single(
            "--normalization", f"{problem}: standard (the data set's mean and deviation) | half (0.5 and 0.5) | none | "
            "checkpoint (what the file holds)"
        )  # fmt: skip
    from trainers.foreign.known import known_model

    options: dict[str, Any] = experiment.model.parameters
    network = known_model(
        weights, experiment.model.name, options, catalog.DATASETS[experiment.data.name], normalization
    )
    chosen = " ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return network, f"{experiment.model.name} {chosen} normalization={normalization}"
