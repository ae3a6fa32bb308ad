"""A Study: experiment + space + search + confirm + resources + tracking. What `orchestrator sweep` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator

from search_spaces.addresses import absolute_file
from search_spaces.constraints import Constraint
from search_spaces.contradictions import contradictions
from search_spaces.dimension import Dimension
from search_spaces.space import check_space, corners, grid_size, read_space, settings
from search_spaces.start_points import check_points, read_points
from search_spaces.stopping import Stopping
from trainers.catalog.attacks import canonical
from trainers.config import Data, Experiment, Section, apply_values, parse
from trainers.problems import InvalidInput, Problem, explain

# Measured after every epoch (`trainers.diagnostics`, which imports more than a study file needs; a test compares).
Metric = Literal["val/clean_accuracy", "val/pgd10_accuracy"]
OBJECTIVES: tuple[Metric, ...] = get_args(Metric)
_POPULATION = 50  # of Optuna's NSGA-II


class Search(Section):
    """How trials are proposed. `trials` is a total: resuming does not add to it."""

    sampler: Literal["tpe", "random", "nsga2", "qmc", "gp", "cmaes", "grid"] = "tpe"
    trials: int = Field(default=20, ge=1, description="a grid has no more than its points")
    startup_trials: int = Field(default=5, ge=1, description="random trials before TPE models anything")
    seed: int = Field(default=0, ge=0)
    seeds: int = Field(
        default=1, ge=1, description="runs of each trial, from experiment.seed on; its objectives are their means"
    )
    objectives: tuple[Metric, ...] = Field(
        default=OBJECTIVES, min_length=1, max_length=2, description="one or two, maximized"
    )
    checkpoint: Literal["best", "last"] = Field(
        default="best", description="which epoch of a trial counts: the most robust on the held-out slice, or the last"
    )
    stop: Stopping = Stopping()
    constraints: dict[Metric, Constraint] = Field(
        default_factory=dict, description="only trials that meet them are chosen"
    )
    start: tuple[dict[str, Any], ...] = Field(default=(), description="points (path: value) that are tried first")
    storage: str | None = Field(
        default=None,
        description="Optuna's: a database URL without password; default: optuna.db in the study's folder",
    )
    share_prefix: bool = Field(
        default=False,
        description="runs that begin alike go on from the epochs that one of them has trained, in confirmations too",
    )
    reuse: bool = Field(
        default=False,
        description="take over runs that another study under the same storage has finished; not those on data.extra",
    )

    @field_validator("objectives")
    @classmethod
    def _different(cls, objectives: tuple[Metric, ...]) -> tuple[Metric, ...]:
        if len(set(objectives)) < len(objectives):
            raise ValueError(f"{objectives[0]} twice: one is enough")
        return objectives

    @field_validator("storage")
    @classmethod
    def _absolute(cls, storage: str | None) -> str | None:
        """A file is the same one from wherever the study is resumed."""
        return storage and absolute_file(storage)


def _known_attacks(attack: str) -> str:
    try:
        return canonical(attack)
    except InvalidInput as error:
        raise ValueError(error.problems[0].message) from None


Attacks = Annotated[str, AfterValidator(_known_attacks)]


class Rung(Section):
    """An attack on held-out images, after which the `keep` most robust trials are left; skipped if no more are."""

    attack: Attacks = Field(description="a name, or several with commas, each on what is left")
    samples: int = Field(ge=1, description="held-out images, at most data.holdout")
    keep: int = Field(ge=1)
    fast: bool = Field(default=False, description="search in bfloat16, judge in float32: for GPUs")


class Confirm(Section):
    """What happens to the best: trained again with fresh seeds, attacked on the test set."""

    ladder: tuple[Rung, ...] = Field(
        default=(), description="attacks that the trials must withstand before; the last one's order counts"
    )
    top: int = Field(default=3, ge=0, description="configurations of the Pareto front; 0 = no confirmation")
    seeds: int = Field(default=3, ge=1)
    workers: int | None = Field(default=None, ge=1, description="default: resources.workers")
    attack: Attacks = Field(default="autoattack", description="a name, or several with commas, each on what is left")
    samples: int = Field(default=1000, ge=1, description="test images")
    shard: int = Field(default=500, ge=1, description="images per shard: part of the protocol")
    batch_size: int = Field(default=250, ge=1, description="images per attack batch: part of the protocol")
    seed: int = Field(default=0, ge=0, description="of the attacks")

    def ladder_for(self, top: int) -> tuple[Rung, ...]:
        """The ladder where so many are to be confirmed: no rung keeps fewer; what drops nobody is left out."""
        rungs: list[Rung] = []
        for rung in self.ladder:
            keep = max(rung.keep, top)
            if not rungs or keep < rungs[-1].keep:
                rungs.append(rung.model_copy(update={"keep": keep}))
        return tuple(rungs)


class Resources(Section):
    """What one trial gets. Workers are DDP ranks; a GPU count of 0 means CPU."""

    workers: int = Field(default=1, ge=1)
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(
        default=0, ge=0, description="0: the CPU; 0.5: two trials of one worker share a GPU; above 1 whole numbers"
    )
    concurrent_trials: int | None = Field(default=None, ge=1, description="default: what fits on the cluster")


class Tracking(Section):
    """Where MLflow is. `uri` defaults to MLFLOW_TRACKING_URI, then to `mlflow.db` beside the study's folder."""

    uri: str | None = None
    experiment: str = "adversarial-training"


class Study(Section):
    """One study. `experiment` stays as it was written: each trial fills it anew around its own values.

    `smoke`: slots that would begin late act from the first epoch on, for a run of one epoch to show them.
    """

    name: str
    smoke: bool = False
    experiment: dict[str, Any] = Field(default_factory=dict)
    space: tuple[Dimension, ...] = ()
    search: Search = Search()
    confirm: Confirm = Confirm()
    resources: Resources = Resources()
    tracking: Tracking = Tracking()

    def experiment_for(self, values: Mapping[str, Any]) -> Experiment:
        """The complete Experiment at one point of the space."""
        experiment = parse(apply_values(self.experiment, settings(self.space, values)))
        late = {f"method.{slot}.start": 0.0 for slot, first in experiment.first_epochs.items() if first}
        return parse(apply_values(experiment.to_dict(), late)) if self.smoke and late else experiment

    def with_data_in(self, directory: Path) -> Study:
        """The same study with its data in another folder."""
        experiment = apply_values(self.experiment, {"data.directory": str(directory.absolute())})
        return self.model_copy(update={"experiment": experiment})

    def located(self, experiment: Experiment) -> Experiment:
        """An experiment of this study with its data where the study has them now: they may have moved."""
        data = self.experiment.get("data")
        given = data if isinstance(data, Mapping) else {}
        directory = given.get("directory")
        place = {
            "directory": str(Path(os.path.expanduser(directory)).absolute()) if directory else None,
            "download": given.get("download", False),
        }
        return experiment.model_copy(update={"data": experiment.data.model_copy(update=place)})

    @property
    def experiments(self) -> list[Experiment]:
        """Those at the corners of the space: every condition holds in one, every extreme is in one."""
        return [self.experiment_for(point) for point in corners(self.space)]

    @property
    def start_points(self) -> list[dict[str, Any]]:
        """The points of `search.start`, with values as trials draw them."""
        return read_points(self.space, self.search.start)

    @property
    def data(self) -> list[Data]:
        """Each data section that occurs at a corner of the space, once."""
        return list(dict.fromkeys(experiment.data for experiment in self.experiments))

    @property
    def confirm_resources(self) -> Resources:
        """What a confirmation run gets: the study's resources with its own number of workers."""
        return self.resources.model_copy(update={"workers": self.confirm.workers or self.resources.workers})

    @property
    def trials(self) -> int:
        """How many trials there are in all."""
        points = grid_size(self.space) if self.search.sampler == "grid" else None
        return self.search.trials if points is None else min(self.search.trials, points)

    @property
    def epochs(self) -> int:
        """Of a trial; where the space varies them, the most."""
        return max(experiment.epochs for experiment in self.experiments)

    @property
    def notices(self) -> list[str]:
        """What is allowed at some point of the space but worth knowing before it runs; each once."""
        found = dict.fromkeys(notice for experiment in self.experiments for notice in experiment.notices)
        held_out = dict.fromkeys((data.name, data.size, data.holdout, data.split_seed) for data in self.data)
        if len(held_out) > 1:
            found["space: held-out images differ, yet trials are ranked together: by them, no two compare"] = None
        if self.search.sampler == "nsga2" and self.trials <= _POPULATION:
            found[
                f"search.sampler: nsga2 draws its first {_POPULATION} trials at random, here all; tpe learns sooner"
            ] = None
        return list(found)

    def to_raw(self) -> dict[str, Any]:
        """Nested plain data that `parse_study` reads back as this study."""
        raw: dict[str, Any] = self.model_dump(mode="json", exclude={"space"})
        raw["space"] = {
            dimension.path: dimension.model_dump(mode="json", exclude={"path"}, exclude_defaults=True)
            for dimension in self.space
        }
        return raw

    def to_yaml(self) -> str:
        """The same as a file."""
        return yaml.safe_dump(self.to_raw(), sort_keys=False, allow_unicode=True)


def parse_study(raw: Mapping[str, Any]) -> Study:
    """Validate a study completely: fields, base experiment, corners of the space, points. Raises InvalidInput."""
    content = dict(raw)
    if isinstance(content.get("space"), Mapping):
        content["space"] = read_space(content["space"])
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        problems = _name_dimensions(explain(error, Study), content)
        raise InvalidInput(dict.fromkeys([*problems, *_elsewhere(content)])) from None
    problems = check_space(study.space, study.experiment)
    # What is wrong with the space would be wrong again with every point.
    problems += check_points(study.space, study.search.start, None if problems else study.experiment)
    problems += contradictions(study)
    if problems:
        raise InvalidInput(problems)
    return study


def _elsewhere(content: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the experiment and the space of a study whose sections can't all be read."""
    base, table = content.get("experiment", {}), content.get("space", [])
    if not isinstance(base, Mapping):
        return []
    try:
        space = [Dimension.model_validate(fields) for fields in table]
    except (ValidationError, TypeError):
        space = []  # conditions on a dimension that can't be read would be complaints about nothing
    return check_space(space, base)


def _name_dimensions(problems: list[Problem], content: Mapping[str, Any]) -> list[Problem]:
    """`space.3.low` -> `space.method.beta.low`."""
    space = content.get("space")
    named = []
    for problem in problems:
        parts = problem.field.split(".")
        if len(parts) > 1 and parts[0] == "space" and parts[1].isdigit() and isinstance(space, list):
            dimension = space[int(parts[1])]
            parts[1] = str(dimension["path"]) if isinstance(dimension, dict) and "path" in dimension else parts[1]
        named.append(Problem(".".join(parts), problem.message))
    return named
