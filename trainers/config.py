"""The Experiment: one training run as plain, frozen, validated data. Imports no torch."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from fractions import Fraction
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
from trainers.problems import InvalidInput, Problem, unknown_name
from trainers.yaml_text import read_yaml


class PixelValue(float):
    """A length in pixel units of [0,1] that remembers how it was written: `8/255` stays text beside its float."""

    text: str

    def __new__(cls, value: object) -> PixelValue:
        """Read a number, or text such as `8/255`. Raises ValueError for anything else."""
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{value!r} is not a number or a fraction such as 8/255")
        written = value.replace(" ", "") if isinstance(value, str) else value
        try:
            number = float(Fraction(written) if isinstance(written, str) and "/" in written else written)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"{value!r} is not a number or a fraction such as 8/255") from None
        self = super().__new__(cls, number)
        self.text = getattr(value, "text", written if isinstance(written, str) else repr(number))
        return self

    def __reduce__(self) -> tuple[type[PixelValue], tuple[str]]:
        return PixelValue, (self.text,)

    def plain(self) -> str | float:
        """As it goes into a file: the text if it is a fraction, else the number."""
        return self.text if "/" in self.text else float(self)


def pixels(text: str) -> float:
    """A length such as `8/255` as a number. Raises InvalidInput for text that is none."""
    try:
        return float(PixelValue(text))
    except ValueError as error:
        raise InvalidInput.single("epsilon", str(error)) from None


Pixels = Annotated[PixelValue, BeforeValidator(PixelValue), PlainSerializer(lambda value: value.plain())]


class Section(BaseModel):
    """Base of all configuration: frozen, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

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


class Data(Section):
    """Which images. The held-out slice is cut from the training set, stratified, fixed by `split_seed`."""

    name: str = "digits"
    directory: str | None = Field(None, description="folder of the data; default: ORCHESTRATOR_DATA")
    download: bool = Field(False, description="fetch the data if it is not there")
    size: Literal[8, 16, 24, 32] = Field(32, description="digits only: shown at size x size by repetition")
    train_samples: int | None = Field(None, ge=10, description="use only this many training images, stratified")
    holdout: int = Field(ge=10, description="training images held out for selection, never trained on")
    augment: bool = Field(description="random crop (padding 4) and horizontal flip")
    split_seed: int = Field(0, ge=0)


class Method(Section):
    """A preset and its four slots; a slot that is given replaces the preset's."""

    name: str = "fgsm"
    inner: str
    outer: str
    beta: float | None = Field(description="strength of the outer loss's KL term, where it has one")
    weighting: Choice | None
    regularizer: Choice | None


class Attack(Section):
    """What the training attack may spend, in pixel units of [0,1]."""

    epsilon: Pixels = Field(gt=0, le=1)
    step_size: Pixels = Field(gt=0, le=2, description="default: the inner attack's relative step times epsilon")
    steps: int = Field(ge=1)
    batch_norm: Literal["train", "eval"] = Field(description="batch-norm mode while the attack is crafted")


class Optimizer(Section):
    """SGD with momentum, the optimizer of every recipe in this field. `batch_size` is global, over all workers."""

    learning_rate: float = Field(default=0.1, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, lt=1)
    batch_size: int = Field(default=128, ge=1)


class Evaluation(Section):
    """How every epoch is measured. `epsilon` is fixed within a study, whatever the training epsilon."""

    epsilon: Pixels = Field(gt=0, le=1)
    probe_samples: int = Field(1024, ge=1, description="fixed training images whose energies are followed")
    batch_size: int = Field(256, ge=1)


class Experiment(Section):
    """One training run. Written next to every checkpoint; alone it reproduces the run."""

    data: Data
    model: Choice
    method: Method
    attack: Attack
    optimizer: Optimizer = Optimizer()
    schedule: Choice
    epochs: int = Field(30, ge=1)
    evaluation: Evaluation
    seed: int = Field(0, ge=0)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data; `parse` of it gives the same Experiment."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The complete configuration as a file that can be run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def digest(self) -> str:
        """Short hash of what changes the result. Where the data lies does not."""
        content = self.to_dict()
        for where in ("directory", "download"):
            del content["data"][where]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def training_passes(self) -> int:
        """Passes per training image; see `catalog`."""
        method = self.method
        weighting = method.weighting.name if method.weighting else None
        regularizer = method.regularizer.name if method.regularizer else None
        return catalog.training_passes(method.inner, method.outer, weighting, regularizer, self.attack.steps)


def parse(raw: Mapping[str, Any]) -> Experiment:
    """Fill a partial configuration from the catalog and validate it. Raises InvalidInput with every problem."""
    filled = copy.deepcopy(dict(raw))
    problems = _fill(filled)
    try:
        experiment = Experiment.model_validate(filled)
    except ValidationError as error:
        already = {problem.field for problem in problems}
        found = [problem for problem in explain(error, Experiment) if problem.field not in already]
        raise InvalidInput([*problems, *found]) from None
    if problems:
        raise InvalidInput(problems)
    return experiment


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Turn pydantic's report into our problems: dotted field, value, what is allowed, nearest field name."""
    problems = []
    for item in error.errors():
        place = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            siblings = _fields_beside(model, item["loc"])
            problems.append(Problem(place, unknown_name(item["loc"][-1], siblings, "field")))
        elif item["type"] == "missing":
            problems.append(Problem(place, "is missing"))
        else:
            problems.append(Problem(place, f"{item['input']!r}: {item['msg'].removeprefix('Value error, ')}"))
    return problems


def _fields_beside(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path[:-1]:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def set_path(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set `raw["a"]["b"] = value` for path `a.b`, making tables on the way; a bare name counts as a table's name."""
    *parents, last = path.split(".")
    table = raw
    for part in parents:
        inside = table.get(part)
        if not isinstance(inside, dict):
            inside = {} if inside is None else {"name": inside}
            table[part] = inside
        table = inside
    table[last] = value


def apply_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested dict with the value at each dotted path set."""
    result = copy.deepcopy(dict(raw))
    for path, value in values.items():
        set_path(result, path, value)
    return result


def apply_overrides(raw: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply `key.path=value` words of a command line to a nested dict; values are read as YAML."""
    result = copy.deepcopy(dict(raw))
    for word in overrides:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise InvalidInput.single(word, "expected key=value, for example attack.epsilon=8/255")
        try:
            value = read_yaml(text)
        except yaml.YAMLError:
            raise InvalidInput.single(path, f"{text!r} can't be read as YAML") from None
        set_path(result, path, value)
    return result


# Filling: what the user left out comes from the catalog, and what contradicts it is a problem.


def _table(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.setdefault(key, {})
    if isinstance(value, str):
        value = raw[key] = {"name": value}
    return value if isinstance(value, dict) else {}


def _fill(raw: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    dataset = _fill_data(_table(raw, "data"), problems)
    method = _table(raw, "method")
    preset = catalog.PRESETS.get(str(method.setdefault("name", "fgsm")))
    if preset is None:
        problems.append(Problem("method.name", unknown_name(method["name"], catalog.PRESETS, "method")))
        preset = catalog.PRESETS["fgsm"]
    attack, evaluation = _table(raw, "attack"), _table(raw, "evaluation")
    schedule = _table(raw, "schedule")
    schedule.setdefault("name", "triangular")
    _fill_choice(schedule, "schedule", catalog.SCHEDULES, problems)
    _fill_method(method, preset, schedule, problems)
    attack.setdefault("epsilon", dataset.epsilon)
    epsilon = _usable_epsilon(attack["epsilon"], dataset)
    _fill_attack(attack, method, preset, epsilon, problems)
    evaluation.setdefault("epsilon", epsilon)
    model = _table(raw, "model")
    model.setdefault("name", "small" if dataset.module.endswith("digits") else "preact_resnet18")
    _fill_choice(model, "model", catalog.MODELS, problems)
    return problems


def _fill_data(data: dict[str, Any], problems: list[Problem]) -> catalog.Dataset:
    name = data.setdefault("name", "digits")
    dataset = catalog.DATASETS.get(str(name))
    if dataset is None:
        problems.append(Problem("data.name", unknown_name(name, catalog.DATASETS, "data set")))
        dataset = catalog.DATASETS["digits"]
    if name != "digits" and "size" in data and data["size"] != 32:
        problems.append(Problem("data.size", f"{data['size']!r}: only digits can be shown at another size"))
    data.setdefault("holdout", dataset.holdout)
    data.setdefault("augment", dataset.augment)
    for field in ("holdout", "train_samples"):
        count = data.get(field)
        if isinstance(count, int) and count >= dataset.num_train:
            problems.append(Problem(f"data.{field}", f"{count}: {name} has {dataset.num_train} training images"))
    wanted, held = data.get("train_samples"), data["holdout"]
    if isinstance(wanted, int) and isinstance(held, int) and wanted < dataset.num_train < wanted + held:
        left = dataset.num_train - held
        problems.append(Problem("data.train_samples", f"{wanted}: only {left} are left beside the {held} held out"))
    return dataset


def _fill_choice(
    table: dict[str, Any], place: str, entries: Mapping[str, catalog.Entry], problems: list[Problem],
    defaults: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    entry = entries.get(str(table.get("name")))
    if entry is None:
        what = place.rpartition(".")[2]
        problems.append(Problem(f"{place}.name", unknown_name(table.get("name"), entries, what)))
        return
    for key in [key for key in table if key != "name"]:
        if key not in entry.parameters:
            allowed = ["name", *entry.parameters]
            problems.append(Problem(f"{place}.{key}", unknown_name(key, allowed, f"field of {table['name']}")))
        elif (complaint := entry.parameters[key].refuse(table[key])) is not None:
            problems.append(Problem(f"{place}.{key}", complaint))
    for key, parameter in entry.parameters.items():
        table.setdefault(key, copy.copy((defaults or {}).get(key, parameter.default)))


def _fill_method(
    method: dict[str, Any], preset: catalog.Preset, schedule: dict[str, Any], problems: list[Problem]
) -> None:
    inner = method.setdefault("inner", preset.inner)
    outer = method.setdefault("outer", preset.outer)
    for slot, entries in (("inner", catalog.INNER), ("outer", catalog.OUTER)):
        if str(method[slot]) not in entries:
            problems.append(Problem(f"method.{slot}", unknown_name(method[slot], entries, slot)))
    takes_beta = str(outer) in catalog.OUTER and "beta" in catalog.OUTER[outer].parameters
    if method.get("beta") is not None:
        parameter = catalog.OUTER["ce_nat_kl"].parameters["beta"]
        if not takes_beta:
            with_beta = [name for name, row in catalog.PRESETS.items() if "beta" in catalog.OUTER[row.outer].parameters]
            hint = " Its regularizer has one: method.regularizer.beta." if preset.regularizer else ""
            problems.append(
                Problem(
                    "method.beta",
                    f"{method['beta']!r}: {method['name']} has no beta in its loss.{hint} "
                    f"Methods with one: {', '.join(sorted(with_beta))}.",
                )
            )
        elif (complaint := parameter.refuse(method["beta"])) is not None:
            problems.append(Problem("method.beta", complaint))
    default_beta = preset.beta if preset.beta is not None else 6.0
    method.setdefault("beta", default_beta if takes_beta else None)
    single_step = str(inner) in catalog.INNER and catalog.INNER[inner].single_step
    for slot, chosen, entries in (
        ("weighting", preset.weighting, catalog.WEIGHTING),
        ("regularizer", preset.regularizer, catalog.REGULARIZER),
    ):
        if slot not in method:
            method[slot] = None if chosen is None else {"name": chosen}
        table = method[slot]
        if isinstance(table, str):
            table = method[slot] = {"name": table}
        if not isinstance(table, dict):
            continue
        if "name" not in table:
            if chosen is None:
                problems.append(
                    Problem(
                        f"method.{slot}",
                        f"{method['name']} has none; add its name, one of: {', '.join(entries)}",
                    )
                )
                method[slot] = None
                continue
            table["name"] = chosen
        defaults = {} if single_step else _multi_step_defaults(schedule)
        _fill_choice(table, f"method.{slot}", entries, problems, defaults)


def _multi_step_defaults(schedule: dict[str, Any]) -> dict[str, Any]:
    """DER on multi-step methods: all samples, late epochs (methods of arXiv 2505.22486; the numbers are ours)."""
    milestones = schedule.get("milestones")
    start = milestones[0] if isinstance(milestones, list) and milestones else 0.75
    return {"beta": 0.25, "samples": "all", "start": start}


def _usable_epsilon(given: Any, dataset: catalog.Dataset) -> PixelValue:
    """What other fields follow: the data set's usual value where a wrong one is a problem already."""
    try:
        epsilon = PixelValue(given)
    except ValueError:
        return PixelValue(dataset.epsilon)
    return epsilon if 0 < epsilon <= 1 else PixelValue(dataset.epsilon)


def _fill_attack(
    attack: dict[str, Any], method: dict[str, Any], preset: catalog.Preset, epsilon: PixelValue,
    problems: list[Problem],
) -> None:  # fmt: skip
    inner = catalog.INNER.get(str(method["inner"]), catalog.INNER["fgsm"])
    steps = attack.setdefault("steps", 1 if inner.single_step else max(preset.steps, 2))
    if inner.single_step and steps != 1:
        problems.append(Problem("attack.steps", f"{steps!r}: {method['inner']} takes exactly 1 step"))
    attack.setdefault("batch_norm", preset.batch_norm)
    attack.setdefault("step_size", inner.relative_step_size * float(epsilon))
