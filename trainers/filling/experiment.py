"""The sections of an experiment, each filled from the recipe, then from the catalog."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from trainers import catalog
from trainers.data.subset import read_subset, subset_hash
from trainers.filling.choices import fill_choice, fill_table, table
from trainers.filling.method import fill_method
from trainers.pixels import PixelValue
from trainers.problems import InvalidInput, Problem, unknown_name


def fill(raw: dict[str, Any]) -> list[Problem]:
    """Fill `raw` in place from its recipe and the catalog; returns what contradicts the catalog, everything found."""
    problems: list[Problem] = []
    _fill_recipe(raw, problems)
    dataset = _fill_data(table(raw, "data"), problems)
    _check_augmentation(raw, dataset, problems)
    _fill_subset(raw, problems)

    model, schedule = table(raw, "model"), table(raw, "schedule")
    model.setdefault("name", "small" if dataset.module.endswith("digits") else "preact_resnet18")
    fill_choice(model, "model", catalog.MODELS, problems)
    schedule.setdefault("name", "triangular")
    fill_choice(schedule, "schedule", catalog.SCHEDULES, problems)

    method, attack = table(raw, "method"), table(raw, "attack")
    epsilon = _usable_epsilon(attack.setdefault("epsilon", dataset.epsilon), dataset)
    table(raw, "evaluation").setdefault("epsilon", epsilon)
    preset = catalog.PRESETS.get(str(method.setdefault("name", "fgsm")))
    of_method = problems
    if preset is None:
        problems.append(Problem("method.name", unknown_name(method["name"], catalog.PRESETS, "method")))
        preset, of_method = catalog.PRESETS["fgsm"], []  # what contradicts a stand-in is nobody's mistake
    data_name, model_name = str(table(raw, "data").get("name")), str(model["name"])
    fill_method(method, preset, schedule, data_name, model_name, float(epsilon), of_method)
    published_step = catalog.published_step_size(
        str(method["inner"].get("name")), data_name, model_name, float(epsilon)
    )
    _fill_attack(attack, method, preset, epsilon, published_step, of_method)

    _check_combinations(raw, schedule, problems)
    return problems


def _fill_recipe(raw: dict[str, Any], problems: list[Problem]) -> None:
    """What the recipe says and nobody gave. A table of another name than the recipe's is left as it is."""
    if raw.get("recipe") is None:
        return
    recipe = catalog.RECIPES.get(str(raw["recipe"]))
    if recipe is None:
        problems.append(Problem("recipe", unknown_name(raw["recipe"], catalog.RECIPES, "recipe")))
        return
    name = table(raw, "data").get("name", "digits")
    usual = {key: recipe.settings[key]["name"] for key in ("method", "schedule")}
    given = {key: table(raw, key).get("name", usual[key]) for key in usual}
    settings: dict[str, Any] = copy.deepcopy(dict(recipe.on_data.get(str(name), {})))
    fill_table(settings, recipe.settings)
    if given["schedule"] != usual["schedule"]:
        settings.get("optimizer", {}).pop("momentum_at_peak", None)
    if str(given["method"]).removesuffix("_der") == usual["method"]:
        # DER beside the recipe's own method changes nothing else of it.
        settings["method"]["name"] = given["method"]
    else:
        # What belongs to the recipe's own method: its step size, when its weight perturbation starts.
        settings.get("attack", {}).pop("step_size", None)
        del settings["method"]
    fill_table(raw, settings)


def _check_combinations(raw: dict[str, Any], schedule: dict[str, Any], problems: list[Problem]) -> None:
    optimizer = table(raw, "optimizer")
    cycled = optimizer.get("momentum_at_peak")
    peaked, name = (
        [key for key, entry in catalog.SCHEDULES.items() if "peak" in entry.parameters],
        str(schedule["name"]),
    )
    if cycled is not None and name in catalog.SCHEDULES and name not in peaked:
        message = f"{cycled!r}: {name} has no peak; these have one: {', '.join(peaked)}"
        problems.append(Problem("optimizer.momentum_at_peak", message))
    if raw.get("synchronize_batch_norm") is True and table(raw, "model").get("norm") == "group":
        problems.append(Problem("synchronize_batch_norm", "true: the model has no batch norm (model.norm: group)"))
    regularizer = table(raw, "method").get("regularizer")
    subset = table(raw, "data").get("subset")
    if isinstance(subset, dict) and subset.get("treatment") == "no_perturb" and regularizer is not None:
        problems.append(
            Problem(
                "data.subset.treatment",
                "'no_perturb': a regularizer compares images with their attacked versions; use 'drop', or none",
            )
        )
    twice = _differentiated_twice(regularizer)
    if raw.get("precision") == "bfloat16" and twice:
        problems.append(Problem("precision", f"'bfloat16': {twice} differentiates twice and needs float32"))
    if raw.get("compile") is True and twice:
        problems.append(Problem("compile", f"true: {twice} differentiates twice, which a compiled network can't"))


def _differentiated_twice(regularizer: Any) -> str | None:
    """The regularizer's name if its loss has gradients with respect to the image in it."""
    name = str(regularizer.get("name")) if isinstance(regularizer, dict) else ""
    entry = catalog.REGULARIZER.get(name)
    return name if entry is not None and "noisy_gradient" in entry.needed(regularizer) else None


def _fill_data(data: dict[str, Any], problems: list[Problem]) -> catalog.Dataset:
    name = data.setdefault("name", "digits")
    dataset = catalog.DATASETS.get(str(name))
    if dataset is None:
        problems.append(Problem("data.name", unknown_name(name, catalog.DATASETS, "data set")))
        dataset = catalog.DATASETS["digits"]
    for field in ("size", "holdout", "augment", "flip"):
        data.setdefault(field, getattr(dataset, field))
    directory = data.get("directory")
    if isinstance(directory, str) and directory:
        # Workers have other working directories. Path.expanduser raises for a home that is not there, as of ~dta/cifar.
        data["directory"] = str(Path(os.path.expanduser(directory)).absolute())
    size, padding = data["size"], data.get("padding")
    if dataset.files and size != dataset.size:
        problems.append(
            Problem("data.size", f"{size!r}: {name} has {dataset.size}; only digits can be shown at another size")
        )
    if isinstance(padding, int) and isinstance(size, int) and padding >= size:
        problems.append(Problem("data.padding", f"{padding}: must be less than the images' {size} pixels"))
    for given, absent, meaning in (
        ("extra", "extra_fraction", "the share of every batch that comes from it"),
        ("extra_fraction", "extra", "the .npz of images that it is a share of"),
    ):
        if data.get(given) is not None and data.get(absent) is None:
            problems.append(Problem(f"data.{absent}", f"is missing: {meaning}"))
    if str(name) not in catalog.DATASETS:
        return dataset  # a stand-in, whose number of images is not what was meant
    for field in ("holdout", "train_samples"):
        count = data.get(field)
        if isinstance(count, int) and count >= dataset.num_train:
            problems.append(Problem(f"data.{field}", f"{count}: {name} has {dataset.num_train} training images"))
    wanted, held = data.get("train_samples"), data["holdout"]
    if isinstance(wanted, int) and isinstance(held, int) and wanted < dataset.num_train < wanted + held:
        left = dataset.num_train - held
        problems.append(Problem("data.train_samples", f"{wanted}: only {left} are left beside the {held} held out"))
    return dataset


def _check_augmentation(raw: dict[str, Any], dataset: catalog.Dataset, problems: list[Problem]) -> None:
    """Parts of an augmentation that is off; not those that data set or recipe fill in, for they are in every file."""
    data = table(raw, "data")
    recipe = catalog.RECIPES.get(str(raw.get("recipe")))
    says = () if recipe is None else (recipe.on_data.get(str(data.get("name")), {}), recipe.settings)
    for field, given in {"flip": True, "padding_mode": "reflect"}.items():
        usual = [getattr(dataset, field, None), *(settings.get("data", {}).get(field) for settings in says)]
        if data.get("augment") is False and data.get(field) == given and given not in usual:
            problems.append(Problem(f"data.{field}", f"{data[field]!r}: is a part of data.augment, which is false"))


def _fill_subset(raw: dict[str, Any], problems: list[Problem]) -> None:
    """What the file of a subset holds, if it is there already: a study can be looked at before its file is made."""
    subset = table(raw, "data").get("subset")
    if not isinstance(subset, dict) or subset.get("sha256") is not None:
        return
    file = Path(os.path.expanduser(str(subset.get("file")))).absolute()
    if file.is_file():
        try:
            indices = read_subset(str(file), str(subset.get("name")))
            subset["sha256"], subset["count"] = subset_hash(indices), len(indices)
        except InvalidInput as error:
            problems.extend(error.problems)
        subset["file"] = str(file)  # workers have other working directories


def _usable_epsilon(given: Any, dataset: catalog.Dataset) -> PixelValue:
    """What other fields follow: the data set's usual value where a wrong one is a problem already."""
    try:
        epsilon = PixelValue(given)
    except ValueError:
        return PixelValue(dataset.epsilon)
    return epsilon if 0 < epsilon <= 1 else PixelValue(dataset.epsilon)


def _fill_attack(
    attack: dict[str, Any], method: dict[str, Any], preset: catalog.Preset, epsilon: PixelValue,
    published_step: str | None, problems: list[Problem],
) -> None:  # fmt: skip
    # An unknown one is a problem already: taken for pgd it is no second one, whatever the steps.
    inner = catalog.INNER.get(str(method["inner"].get("name")), catalog.INNER["pgd"])
    steps = attack.setdefault("steps", 1 if inner.single_step else preset.steps if preset.steps > 1 else 10)
    if inner.single_step and steps != 1:
        problems.append(Problem("attack.steps", f"{steps!r}: {method['inner']['name']} takes exactly 1 step"))
    attack.setdefault("batch_norm", preset.batch_norm)
    # Fewer steps than the usual four or more must go further each, or they would not get to ε.
    least = 1 / steps if isinstance(steps, int) and steps > 1 else 0.0
    attack.setdefault("step_size", published_step or max(inner.relative_step_size, least) * float(epsilon))
