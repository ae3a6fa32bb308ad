"""The listing verbs: rows as a table, as JSON or as CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.loader import header, load_study, shipped
from trainers import catalog
from trainers.config import parse
from trainers.problems import InvalidInput, unknown_name

Row = dict[str, Any]


def print_rows(rows: Sequence[Row], form: str) -> None:
    """Print rows of equal keys. Raises InvalidInput for a format that does not exist."""
    if form == "json":
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    elif form == "table":
        _print_table(rows)
    else:
        raise InvalidInput.single("--format", unknown_name(form, ("table", "json", "csv"), "format"))


def _print_table(rows: Sequence[Row]) -> None:
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in rows[0]}, *rows]:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip())


SLOTS: dict[str, Mapping[str, catalog.Entry]] = {
    "inner": catalog.INNER,
    "outer": catalog.OUTER,
    "weighting": catalog.WEIGHTING,
    "regularizer": catalog.REGULARIZER,
    "weight_perturbation": catalog.WEIGHT_PERTURBATION,
}


def print_methods(form: str) -> None:
    """All presets, a line each."""
    rows = []
    for name, preset in catalog.PRESETS.items():
        experiment = parse({"method": name})
        chosen = {slot: getattr(experiment.method, slot) for slot in SLOTS}
        named = {slot: choice.name if choice is not None else "" for slot, choice in chosen.items()}
        rows.append(
            {
                "method": name,
                "inner": named["inner"],
                "outer": named["outer"],
                "beta": "" if preset.beta is None else preset.beta,
                "weighting": named["weighting"],
                "regularizer": named["regularizer"],
                "weights": named["weight_perturbation"],
                "passes": experiment.training_passes,
                "about": preset.about,
            }
        )
    print_rows(rows, form)


def print_method(name: str, form: str) -> None:
    """One preset: its slots, their parameters with defaults and ranges, its source."""
    if name not in catalog.PRESETS:
        raise InvalidInput.single("method", unknown_name(name, catalog.PRESETS, "method"))
    preset = catalog.PRESETS[name]
    experiment = parse({"method": name})
    method, attack = experiment.method, experiment.attack
    outer = catalog.OUTER[method.outer.name]
    rows = []
    if "beta" in outer.parameters:
        rows.append(_parameter("method.beta", method.beta, outer.parameters["beta"], f"{preset.outer}: {outer.about}"))
    for slot, entries in SLOTS.items():
        choice = getattr(method, slot)
        if choice is not None:
            entry = entries[choice.name]
            rows += [
                _parameter(f"method.{slot}.{key}", choice.parameters[key], parameter, f"{choice.name}: {entry.about}")
                for key, parameter in entry.fields.items()
                if key in choice.parameters
            ]
    if form == "table":
        named = {slot: getattr(method, slot) for slot in SLOTS}
        slots = "  ".join(f"{slot}={choice.name if choice else 'none'}" for slot, choice in named.items())
        print(f"{name}: {preset.about}\nsource: {preset.source}\n")
        print(f"{slots}  steps={attack.steps}  batch_norm={attack.batch_norm}\n")
    if rows:
        print_rows(rows, form)
    elif form == "table":
        print("no parameters of its own")


def _parameter(path: str, default: Any, parameter: catalog.Parameter, slot: str) -> Row:
    return {"field": path, "default": default, "allowed": parameter.allowed, "about": parameter.about, "slot": slot}


def print_spaces(form: str) -> None:
    """The shipped studies, a line each."""
    rows = []
    for name, path in shipped().items():
        study = load_study(name)
        rows.append({"study": name, "trials": study.trials, "question": header(path)})
    print_rows(rows, form)


def print_space(name: str) -> None:
    """One shipped study: its file's text."""
    if name not in shipped():
        raise InvalidInput.single("study", unknown_name(name, shipped(), "study"))
    print(shipped()[name].read_text(), end="")
