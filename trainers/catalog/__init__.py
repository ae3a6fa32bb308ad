"""What each name means, what it takes, what it costs, where it comes from: the tables behind every configuration.

No torch in here: `--help`, validation, `methods` and `--dry-run` read these tables and answer at once.
A method is a choice in each slot (inner attack, outer loss, weighting, regularizer, weight perturbation); the names of
the papers are presets, rows over the slots. To add a method: one pure function, one row here, one test vector;
from another package, an entry point (`extensions`).

Costs are counted in passes: 1 = one forward of one image; a backward to the input costs 1, to the weights 1 more.
"""

from trainers.catalog.datasets import DATASETS
from trainers.catalog.entries import Dataset, Entry, Inner, Model, Outer, Parameter, Preset, Recipe
from trainers.catalog.extensions import load_extensions
from trainers.catalog.models import MODELS
from trainers.catalog.presets import PRESETS
from trainers.catalog.published import PUBLISHED, Setting, nearest_of_aaer, published_beta, published_step_size
from trainers.catalog.recipes import RECIPES
from trainers.catalog.schedules import SCHEDULES
from trainers.catalog.slots import (
    INNER,
    OPTIONAL_SLOTS,
    OUTER,
    REGULARIZER,
    SLOTS,
    WEIGHT_PERTURBATION,
    WEIGHTING,
    sees_attack_as_update,
)

__all__ = [
    "DATASETS",
    "INNER",
    "MODELS",
    "OPTIONAL_SLOTS",
    "OUTER",
    "PRESETS",
    "PUBLISHED",
    "RECIPES",
    "REGULARIZER",
    "SCHEDULES",
    "SLOTS",
    "WEIGHTING",
    "WEIGHT_PERTURBATION",
    "Dataset",
    "Entry",
    "Inner",
    "Model",
    "Outer",
    "Parameter",
    "Preset",
    "Recipe",
    "Setting",
    "nearest_of_aaer",
    "published_beta",
    "published_step_size",
    "sees_attack_as_update",
]

# Last, for an extension imports the names above.
load_extensions()
