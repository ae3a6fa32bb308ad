"""What the user left out comes from the catalog; what contradicts the catalog is a problem."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from trainers import catalog
from trainers.pixels import PixelValue
from trainers.problems import Problem, unknown_name


def _table(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.setdefault(key, {})
    if isinstance(value, str):
        value = raw[key] = {"name": value}
    return value if isinstance(value, dict) else {}


def fill(raw: dict[str, Any]) -> list[Problem]:
    """Fill `raw` in place from the catalog; returns what contradicts the catalog, everything found."""
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
    for field in ("size", "holdout", "augment", "flip"):
        data.setdefault(field, getattr(dataset, field))
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
