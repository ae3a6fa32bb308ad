"""The listing verbs: rows as a table, as JSON or as CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from orchestrator.pages.csv_rows import to_csv
from search_spaces.loader import header, load_study, shipped
from trainers import catalog
from trainers.config import by_path, parse
from trainers.problems import InvalidInput, unknown_name

Row = dict[str, Any]
FORMATS = ("table", "json", "csv")
_PARAMETER_COLUMNS = ("field", "default", "allowed", "about", "slot")


def check_format(form: str) -> None:
    """Raise InvalidInput for a format that does not exist."""
    if form not in FORMATS:
        raise InvalidInput.single("--format", unknown_name(form, FORMATS, "format"))


def print_rows(rows: Sequence[Row], form: str, columns: Sequence[str] = ()) -> None:
    """Print rows of equal keys; `columns` are these keys where there may be no row. Raises as `check_format`."""
    check_format(form)
    if form == "json":
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif form == "csv":
        print(to_csv(rows, columns), end="")
    else:
        _print_table(rows)


def _print_table(rows: Sequence[Row]) -> None:
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in rows[0]}, *rows]:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip())


def print_methods(form: str) -> None:
    """All presets, a line each."""
    rows = []
    for name, preset in catalog.PRESETS.items():
        experiment = parse({"method": name})
        chosen = {slot: getattr(experiment.method, slot) for slot in catalog.SLOTS}
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
    check_format(form)
    if name not in catalog.PRESETS:
        raise InvalidInput.single("method", unknown_name(name, catalog.PRESETS, "method"))
    preset = catalog.PRESETS[name]
    experiment = parse({"method": name})
    method, attack = experiment.method, experiment.attack
    outer = catalog.OUTER[method.outer.name]
    rows = []
    if "beta" in outer.parameters:
        rows.append(_parameter("method.beta", method.beta, outer.parameters["beta"], f"{preset.outer}: {outer.about}"))
    for slot, entries in catalog.SLOTS.items():
        choice = getattr(method, slot)
        if choice is not None:
            entry = entries[choice.name]
            rows += [
                _parameter(f"method.{slot}.{key}", choice.parameters[key], parameter, f"{choice.name}: {entry.about}")
                for key, parameter in entry.fields.items()
                if key in choice.parameters
            ]
    if form == "table":
        named = {slot: getattr(method, slot) for slot in catalog.SLOTS}
        slots = "  ".join(f"{slot}={choice.name if choice else 'none'}" for slot, choice in named.items())
        print(f"{name}: {preset.about}\nsource: {preset.source}\n")
        print(f"{slots}  steps={attack.steps}  batch_norm={attack.batch_norm}\n")
    if form == "table" and not rows:
        print("no parameters of its own")
    else:
        print_rows(rows, form, _PARAMETER_COLUMNS)


def _parameter(path: str, default: Any, parameter: catalog.Parameter, slot: str) -> Row:
    values = (path, default, parameter.allowed, parameter.about, slot)
    return dict(zip(_PARAMETER_COLUMNS, values, strict=True))


def print_spaces(form: str) -> None:
    """The shipped studies, a line each."""
    rows = []
    for name, path in shipped().items():
        study = load_study(name)
        rows.append({"study": name, "trials": study.trials, "question": header(path)})
    print_rows(rows, form)


def print_space(name: str, form: str) -> None:
    """One shipped study: its file's text, or what is in it as JSON, or a line of CSV for each field."""
    check_format(form)
    if name not in shipped():
        raise InvalidInput.single("study", unknown_name(name, shipped(), "study"))
    if form == "table":
        print(shipped()[name].read_text(encoding="utf-8"), end="")
        return
    content = load_study(name).to_raw()
    if form == "json":
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        print_rows([{"field": field, "value": value} for field, value in by_path(content)], form)
