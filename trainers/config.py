"""The Experiment: one training run as plain, frozen, validated data. Imports no torch."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from trainers import catalog
from trainers.costs import training_passes
from trainers.filling import fill
from trainers.notices import notices
from trainers.pixels import PixelValue
from trainers.problems import InvalidInput, Problem, explain
from trainers.yaml_text import read_yaml

Precision = Literal["float32", "tf32", "bfloat16"]
Pixels = Annotated[PixelValue, BeforeValidator(PixelValue), PlainSerializer(lambda value: value.plain())]


class Section(BaseModel):
    """Base of all configuration: frozen, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, field: ValidationInfo) -> Any:
        """Pydantic reads true as 1."""
        kind = cls.model_fields[str(field.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError("is not a number")
        return value


class Choice(Section):
    """A name from a table of the catalog with that entry's parameters beside it, all of them filled in."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters without the name, as keyword arguments for the entry's function."""
        return dict(self.model_extra or {})


class Subset(Section):
    """Some of the training images, treated apart: removed (`drop`), or trained on without perturbation (`no_perturb`).

    `sha256` and `count` say which images and how many; the file must hold the same from when they were read from it.
    """

    file: str = Field(min_length=1, description="written by `orchestrator subsets`")
    name: str = Field(description="misclassified, high_energy, low_energy, random, or what else the file holds")
    treatment: Literal["drop", "no_perturb"]
    sha256: str | None = Field(None, description="of the sorted indices; default: those of the file")
    count: int | None = Field(None, ge=1, description="default: how many the file holds")


class Data(Section):
    """Which images. The held-out slice is cut from the training set, stratified, fixed by `split_seed`."""

    name: str = "digits"
    directory: str | None = Field(None, description="folder of the data; default: ORCHESTRATOR_DATA")
    download: bool = Field(False, description="fetch the data if it is not there")
    size: Literal[8, 16, 24, 32, 64] = Field(description="side of the images; digits are shown larger by repetition")
    train_samples: int | None = Field(None, ge=10, description="use only this many training images, stratified")
    holdout: int = Field(ge=10, description="training images held out for selection, never trained on")
    augment: bool = Field(description="random crop after padding, and flip")
    flip: bool = Field(description="mirror half of the images left to right, as a part of `augment`")
    padding: int = Field(4, ge=0, description="pixels added on every side before the crop")
    padding_mode: Literal["zero", "reflect"] = "zero"
    normalization: Literal["standard", "half", "none"] = Field(
        "standard", description="inside the model: the data set's mean and deviation, 0.5 and 0.5, or nothing"
    )
    extra: str | None = Field(
        None, min_length=1, description="more training images: an .npz with image and label, relative to `directory`"
    )
    extra_fraction: float | None = Field(None, gt=0, lt=1, description="share of every batch that comes from `extra`")
    split_seed: int = Field(0, ge=0)
    subset: Subset | None = Field(None, description="training images that are treated apart")

    @property
    def num_train(self) -> int:
        """Images that are left to train on; a `subset` that is dropped is still among them."""
        left = catalog.DATASETS[self.name].num_train - self.holdout
        return min(self.train_samples or left, left)


class Method(Section):
    """A preset and its slots; a slot that is given replaces the preset's."""

    name: str = "fgsm"
    inner: Choice
    outer: Choice
    beta: float | None = Field(description="strength of the outer loss's KL term, where it has one")
    weighting: Choice | None
    regularizer: Choice | None
    weight_perturbation: Choice | None


class Attack(Section):
    """What the training attack may spend, in pixel units of [0,1]."""

    epsilon: Pixels = Field(gt=0, le=1)
    step_size: Pixels = Field(gt=0, le=2, description="default: the inner attack's part of epsilon, 1/steps at least")
    steps: int = Field(ge=1)
    batch_norm: Literal["train", "eval"] = Field(description="batch-norm mode while the attack is crafted")
    warmup_epochs: float = Field(0.0, ge=0, description="epsilon and the step grow linearly from 0 in these epochs")


class Optimizer(Section):
    """SGD with momentum, the optimizer of every recipe in this field. `batch_size` is global, over all workers."""

    learning_rate: float = Field(default=0.1, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    momentum_at_peak: float | None = Field(
        default=None, ge=0, lt=1, description="momentum falls to this at the peak rate"
    )
    weight_decay: float = Field(default=5e-4, ge=0, lt=1)
    batch_size: int = Field(default=128, ge=1)
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="measure and keep an exponential moving average of the weights"
    )


class CatastrophicRule(Section):
    """Thresholds of catastrophic overfitting. Accuracies are fractions, energies in nats, windows in epochs."""

    accuracy_drop: float = Field(default=0.5, gt=0, lt=1, description="collapsed: below this fraction of the best")
    above_chance: float = Field(default=0.10, ge=0, lt=1, description="the best must have been so far above chance")
    energy_jump: float = Field(default=0.5, gt=0, description="least rise of ΔE(x) over its median")
    energy_deviations: float = Field(default=5.0, ge=0, description="the same in deviations (scaled median absolute)")
    energy_window: int = Field(default=5, ge=1)
    accuracy_gap: float = Field(default=0.30, gt=0, le=1, description="training attack's accuracy less that of PGD")
    check_drop: float = Field(default=0.20, gt=0, lt=1, description="fall of accuracy from one check to the next")


class RobustRule(Section):
    """Thresholds of robust overfitting. Slopes are of mean ΔE(x), in nats per epoch; windows are in epochs.

    The default slope suits a 10-class ResNet-18 under SAT. For flatter curves (100 classes, TRADES) the slope is
    judged by the run's own: `{relative_slope: 5, slope: -0.0005}`.
    """

    first_epoch: int = Field(default=20, ge=0)
    slope: float = Field(default=-0.004, le=0, description="at most this")
    relative_slope: float | None = Field(
        default=None, gt=0, description="also at most so many times the middle third's median; only in the last third"
    )
    slope_window: int = Field(default=10, ge=2)
    error_rise: float = Field(default=0.005, ge=0, lt=1, description="robust error above its running minimum")
    error_median: int = Field(default=5, ge=1, description="epochs over whose median the error is smoothed")
    error_first_epoch: int = Field(default=10, ge=0, description="the minimum counts from here on")
    consecutive: int = Field(default=3, ge=1, description="epochs in a row in which both hold")


class Evaluation(Section):
    """How every epoch is measured. `epsilon` is fixed within a study, whatever the training epsilon."""

    epsilon: Pixels = Field(gt=0, le=1)
    probe_samples: int = Field(512, ge=1, description="fixed training images whose energies are followed")
    batch_size: int = Field(256, ge=1)
    check_every: int | None = Field(None, ge=1, description="steps of an epoch between two checks under PGD-5")
    catastrophic: CatastrophicRule = CatastrophicRule()
    robust: RobustRule = RobustRule()


class Experiment(Section):
    """One training run. Written next to every checkpoint; alone it reproduces the run."""

    recipe: str | None = Field(None, description="where the values that were not given came from")
    data: Data
    model: Choice
    method: Method
    attack: Attack
    optimizer: Optimizer = Optimizer()
    schedule: Choice
    epochs: int = Field(30, ge=1)
    keep_every: int | None = Field(
        None, ge=1, description="keep the checkpoint of every Nth epoch and of the first, beside the newest"
    )
    evaluation: Evaluation
    precision: Precision = Field(
        "float32", description="of training and of attacks that measure it (tf32: where GPUs have it); float32 judges"
    )
    compile: bool = Field(
        False,
        description="attack and update by torch.compile: costs a minute or more at the start; pays off in long runs",
    )
    synchronize_batch_norm: bool = Field(
        False,
        description="batch statistics of all workers, not of each, exchanged in every pass in train mode",
    )
    seed: int = Field(0, ge=0)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data; `parse` of it gives the same Experiment."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The complete configuration as a file that can be run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def identity(self) -> dict[str, Any]:
        """What changes the result. Not where data lie, values came from, or what is kept and read.

        What `data.extra` holds is known by the name of its file alone: it need not be where experiments are parsed.
        """
        content = self.to_dict()
        for how in ("recipe", "keep_every"):
            del content[how]
        for where in ("directory", "download"):
            del content["data"][where]
        for section, field in (("attack", "epsilon"), ("attack", "step_size"), ("evaluation", "epsilon")):
            content[section][field] = float(getattr(getattr(self, section), field))  # however it was written
        subset = content["data"].pop("subset")
        if subset is not None:
            if subset["sha256"] is None:
                raise InvalidInput.single("data.subset.file", f"{subset['file']!r}: is not there; what is in it counts")
            content["data"]["subset"] = [subset["treatment"], subset["sha256"]]
        for rule in ("catastrophic", "robust"):
            del content["evaluation"][rule]
        return content

    def digest(self) -> str:
        """Short hash of the identity."""
        return digest_of(self.identity())

    def with_seed(self, seed: int) -> Experiment:
        """The same experiment with another seed."""
        return self.model_copy(update={"seed": seed})

    def keeps(self, epoch: int) -> bool:
        """Whether `keep_every` wants the checkpoint of this epoch (0-based), beside the newest ones."""
        return self.keep_every is not None and (epoch == 0 or (epoch + 1) % self.keep_every == 0)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of what is trained on; one if that is less than a batch.

        At most so many where `data.train_samples` leaves out some of the images that `data.subset` drops.
        """
        data, subset = self.data, self.data.subset
        dropped = subset.count or 0 if subset is not None and subset.treatment == "drop" else 0
        trained_on = min(data.num_train, catalog.DATASETS[data.name].num_train - data.holdout - dropped)
        return max(trained_on // self.optimizer.batch_size, 1)

    @property
    def training_passes(self) -> int:
        """Passes per training image."""
        return training_passes(self)

    @property
    def first_epochs(self) -> dict[str, int]:
        """The epoch (0-based) in which each filled slot begins to act; the number of epochs if it never does."""
        found = {}
        for slot in catalog.OPTIONAL_SLOTS:
            choice = getattr(self.method, slot)
            if choice is not None:
                start = float(choice.parameters.get("start", 0.0))
                near = range(max(int(start * self.epochs) - 1, 0), self.epochs)
                # The comparison is the loop's own: a product may be rounded to the other side.
                found[slot] = next((epoch for epoch in near if epoch / self.epochs >= start), self.epochs)
        return found

    @property
    def notices(self) -> list[str]:
        """What is allowed but worth knowing before it runs."""
        return notices(self)


def digest_of(content: Mapping[str, Any]) -> str:
    """Short hash of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def parse(raw: Mapping[str, Any]) -> Experiment:
    """Fill a partial configuration from the catalog and validate it. Raises InvalidInput with every problem."""
    filled = copy.deepcopy(dict(raw))
    problems = fill(filled)
    try:
        experiment = Experiment.model_validate(filled)
    except ValidationError as error:
        # What is in a table that is a problem itself says nothing more.
        already = tuple(f"{problem.field}." for problem in problems)
        found = [problem for problem in explain(error, Experiment) if not f"{problem.field}.".startswith(already)]
        raise InvalidInput([*problems, *found]) from None
    problems += _contradictions(experiment)
    if problems:
        raise InvalidInput(problems)
    return experiment


def _contradictions(experiment: Experiment) -> list[Problem]:
    """What can be seen only once every field has its value."""
    problems = []
    check_every, is_known = experiment.evaluation.check_every, experiment.data.name in catalog.DATASETS
    if check_every is not None and is_known and check_every > (steps := experiment.steps_per_epoch):
        problems.append(Problem("evaluation.check_every", f"{check_every}: an epoch has {steps} steps only"))
    warmup, epochs = experiment.attack.warmup_epochs, experiment.epochs
    if warmup >= epochs:
        message = f"{warmup:g}: must be below the {epochs} epochs, or ε is never reached"
        problems.append(Problem("attack.warmup_epochs", message))
    momentum, at_peak = experiment.optimizer.momentum, experiment.optimizer.momentum_at_peak
    if at_peak is not None and at_peak > momentum:
        message = f"{at_peak:g}: momentum falls to it at the peak rate, and optimizer.momentum is {momentum:g}"
        problems.append(Problem("optimizer.momentum_at_peak", f"{message}; null keeps it there"))
    fraction, batch = experiment.data.extra_fraction, experiment.optimizer.batch_size
    if fraction is not None and not 0 < (count := round(batch * fraction)) < batch:
        message = f"{fraction:g}: {count} images of a batch of {batch}; at least one must come from each set"
        problems.append(Problem("data.extra_fraction", message))
    return problems


def set_path(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set `raw["a"]["b"] = value` for path `a.b`, making tables on the way; a bare name counts as a table's name."""
    *parents, last = path.split(".")
    table = raw
    for part in parents:
        inside = table.get(part)
        if not isinstance(inside, dict):
            inside = table[part] = {} if inside is None else {"name": inside}
        table = inside
    table[last] = value


def apply_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested dict with the value at each dotted path set."""
    result = copy.deepcopy(dict(raw))
    for path, value in values.items():
        set_path(result, path, value)
    return result


def by_path(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested plain data with their dotted paths; an empty table is a value."""
    if isinstance(content, Mapping) and content:
        for name, inside in content.items():
            yield from by_path(inside, f"{path}.{name}" if path else name)
    else:
        yield path, content


def apply_overrides(raw: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply `key.path=value` words of a command line to a nested dict; values are read as YAML."""
    return apply_values(raw, read_overrides(overrides))


def read_overrides(words: list[str]) -> dict[str, Any]:
    """Dotted path -> value, of `key.path=value` words; values are read as YAML. Raises InvalidInput."""
    values = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise InvalidInput.single(word, "expected key=value, for example attack.epsilon=8/255")
        try:
            values[path] = read_yaml(text)
        except yaml.YAMLError:
            raise InvalidInput.single(path, f"{text!r} can't be read as YAML") from None
    return values
