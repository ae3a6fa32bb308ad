"""Which images trained networks are to draw: the options of `orchestrator generate`, or a file that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from trainers.config import Section
from trainers.generation.settings import (
    LOCAL_SPREAD,
    LOCAL_VARIANCE,
    PCA_VARIANCE,
    TOLERANCE,
    Dynamics,
    StartSettings,
)
from trainers.problems import InvalidInput, Problem, explain, unknown_name
from trainers.yaml_text import read_table

Init = Literal["pca", "local_pca", "gaussian", "noise"]
# What each start can be told, by the names of `StartSettings` and of the fields.
INITS: dict[Init, tuple[str, ...]] = {
    "pca": ("variance", "spread"),
    "local_pca": ("variance", "spread", "neighbors"),
    "gaussian": (),
    "noise": (),
}
_FOLDER = Path(__file__).parent / "tables"


class Generation(Section):
    """A table of images: every network from every init, by the same dynamics and seeds."""

    networks: dict[str, str] = Field(
        default_factory=dict,
        description="name: run folder, checkpoint or file of weights; or on the command line",
    )
    init: tuple[Init, ...] = Field(default=("pca",), min_length=1)
    classes: tuple[int, ...] | None = Field(default=None, min_length=1, description="from 0; default: all")
    per_class: int = Field(default=10, ge=1, description="images of each class")
    steps: int = Field(default=Dynamics.steps, ge=1, description="of the dynamics, at most")
    step_size: float = Field(default=Dynamics.step_size, gt=0, description="η")
    inertia: float = Field(default=Dynamics.inertia, ge=0, lt=1, description="ζ; from 1 on chains never come to rest")
    noise: float = Field(default=Dynamics.noise, ge=0, description="standard deviation of a step, in pixels of [0,1]")
    adaptive_stop: bool = Field(default=False, description="at the energy of the class's training images")
    tolerance: float | None = Field(
        default=None, ge=0, description=f"of adaptive_stop, in deviations of that energy; default: {TOLERANCE}"
    )
    compile: bool = Field(
        default=False, description="the gradient: costs minutes at the start; pays off for thousands of images"
    )
    variance: float | None = Field(
        default=None, gt=0, le=1, description=f"share that PCA keeps; {PCA_VARIANCE}, local {LOCAL_VARIANCE}"
    )
    spread: float | None = Field(
        default=None, ge=0, description=f"κ of PCA, in standard deviations; local {LOCAL_SPREAD}"
    )
    neighbors: int | None = Field(
        default=None, ge=2, description=f"images that local PCA looks at; default: {StartSettings.neighbors}"
    )
    inception: Path | None = Field(default=None, description="torch-fidelity's Inception weights: IS, FID, KID")
    alexnet: Path | None = Field(default=None, description="torchvision's AlexNet weights: LPIPS")
    classifier: Path | None = Field(default=None, description="a run folder that stands in for Inception: FID-clf …")
    seed: int = Field(default=0, ge=0, description="of starts and noise")
    shard: int = Field(default=500, ge=1, description="images that share random numbers; decides what comes out")

    @field_validator("init", "classes")
    @classmethod
    def _different(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError("the same one comes twice")
        return values

    @property
    def start_settings(self) -> dict[str, Any]:
        """What was said about the starts, by the names of `StartSettings`."""
        given = {"variance": self.variance, "spread": self.spread, "neighbors": self.neighbors}
        return {name: value for name, value in given.items() if value is not None}


def shipped_generations() -> dict[str, Path]:
    """Name -> file of every table of generated images that comes with this package."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def load_generation(source: str | None, options: Mapping[str, Any]) -> Generation:
    """A file, or one of ours by its name, with `options` over it; None: the options alone.

    Raises InvalidInput, which names what came from the command line as an option.
    """
    raw: dict[str, Any] = {}
    if source is not None:
        path = Path(source)
        if not path.is_file():
            if source not in shipped_generations():
                raise InvalidInput.single("--study", unknown_name(source, shipped_generations(), "table"))
            path = shipped_generations()[source]
        raw = read_table(path)
    try:
        settings = Generation.model_validate({**raw, **options})
        problems = _said_to_nobody(settings)
        if not problems:
            return settings
    except ValidationError as error:
        problems = explain(error, Generation)
    raise InvalidInput([_as_asked(problem, options) for problem in problems])


def _said_to_nobody(settings: Generation) -> list[Problem]:
    problems = []
    if settings.tolerance is not None and not settings.adaptive_stop:
        problems.append(Problem("tolerance", f"{settings.tolerance}: is for adaptive_stop"))
    for name, value in settings.start_settings.items():
        if not any(name in INITS[init] for init in settings.init):
            using = ", ".join(init for init, names in INITS.items() if name in names)
            problems.append(Problem(name, f"{value}: is for the init {using}"))
    return problems


def _as_asked(problem: Problem, options: Mapping[str, Any]) -> Problem:
    field = problem.field.split(".")[0]
    return Problem("--" + field.replace("_", "-"), problem.message) if field in options else problem
