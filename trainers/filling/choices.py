"""Tables of a raw configuration: made where they are missing, filled from an entry of the catalog."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from trainers import catalog
from trainers.problems import Problem, unknown_name


def table(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """The table at `key`: a bare name counts as its name, an absent one is made."""
    value = raw.setdefault(key, {})
    if isinstance(value, str):
        value = raw[key] = {"name": value}
    return value if isinstance(value, dict) else {}


def fill_table(raw: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Give `raw` what it leaves open and `defaults` have, key by key in every table; a bare name is a table with it.

    A table of another name than the default's is left as it is: the default's other fields belong to what that names.
    """
    for key, default in defaults.items():
        if isinstance(default, str) and isinstance(raw.get(key), dict):
            default = {"name": default}
        if not isinstance(default, Mapping):
            raw.setdefault(key, copy.copy(default))
            continue
        inside = table(raw, key)
        if "name" not in default or inside.get("name", default["name"]) == default["name"]:
            fill_table(inside, default)


def fill_choice(
    table: dict[str, Any], place: str, entries: Mapping[str, catalog.Entry], problems: list[Problem],
    defaults: Mapping[str, Any] | None = None, apart: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Check a table's fields against its entry and fill in what is missing, `defaults` before the entry's own.

    Fields `apart` are given elsewhere.
    """
    entry = entries.get(str(table.get("name")))
    if entry is None:
        what = place.rpartition(".")[2]
        problems.append(Problem(f"{place}.name", unknown_name(table.get("name"), entries, what)))
        return
    fields = {key: parameter for key, parameter in entry.fields.items() if key not in apart}
    for key in [key for key in table if key != "name"]:
        if key not in fields:
            allowed = ["name", *fields]
            problems.append(Problem(f"{place}.{key}", unknown_name(key, allowed, f"field of {table['name']}")))
        elif (complaint := fields[key].refuse(table[key])) is not None:
            problems.append(Problem(f"{place}.{key}", complaint))
    usual = {key: (defaults or {}).get(key, parameter.default) for key, parameter in fields.items()}
    for key, default in usual.items():
        table.setdefault(key, copy.copy(default))
    for key, parameter in fields.items():
        if isinstance(parameter.default, float) and parameter.refuse(table[key]) is None:
            table[key] = float(table[key])  # 10 and 10.0 are one experiment, with one digest
        for other, needed in parameter.only_with.items():
            idle = table[other] != needed and fields[other].refuse(table[other]) is None
            if idle and table[key] != usual[key]:
                message = f"{table[key]!r}: changes nothing with {other}: {table[other]}, only with {other}: {needed}"
                problems.append(Problem(f"{place}.{key}", message))
