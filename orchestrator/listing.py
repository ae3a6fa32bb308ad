"""The listing verbs: rows as a table, as JSON or as CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
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


def print_methods(form: str) -> None:
    """All presets, a line each."""
    rows = []
    for name, preset in catalog.PRESETS.items():
        experiment = parse({"method": name})
        rows.append(
            {
                "method": name,
                "inner": preset.inner,
                "outer": preset.outer,
                "beta": "" if preset.beta is None else preset.beta,
                "weighting": preset.weighting or "",
                "regularizer": preset.regularizer or "",
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
    method = parse({"method": name}).method
    if form == "table":
        print(f"{name}: {preset.about}\nsource: {preset.source}\n")
    outer = catalog.OUTER[preset.outer]
    rows = [
        _parameter("method.beta", method.beta, parameter, f"{preset.outer}: {outer.about}")
        for parameter in outer.parameters.values()
    ]
    slots = (
        ("weighting", method.weighting, catalog.WEIGHTING),
        ("regularizer", method.regularizer, catalog.REGULARIZER),
    )
    for slot, choice, entries in slots:
        if choice is not None:
            entry = entries[choice.name]
            rows += [
                _parameter(f"method.{slot}.{key}", choice.parameters[key], parameter, f"{choice.name}: {entry.about}")
                for key, parameter in entry.parameters.items()
            ]
    slots_row = {key: value for key, value in asdict(preset).items() if key not in ("about", "source")}
    if form == "table":
        print("  ".join(f"{key}={value}" for key, value in slots_row.items()), "\n")
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
        rows.append({"study": name, "trials": study.search.trials, "question": header(path)})
    print_rows(rows, form)


def print_space(name: str) -> None:
    """One shipped study: its file's text."""
    if name not in shipped():
        raise InvalidInput.single("study", unknown_name(name, shipped(), "study"))
    print(shipped()[name].read_text(), end="")
