"""The slots of a method: what was not given comes from the preset, from the papers' settings, from the entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainers import catalog
from trainers.filling.choices import fill_choice, table
from trainers.problems import Problem, unknown_name


def fill_method(
    method: dict[str, Any], preset: catalog.Preset, schedule: Mapping[str, Any], data: str, epsilon: float,
    problems: list[Problem],
) -> None:  # fmt: skip
    """Fill every slot of `method` in place and report what contradicts the catalog."""
    _fill_slot(method, "inner", preset, catalog.INNER, None, problems)
    inner = str(method["inner"]["name"])
    milestones = schedule.get("milestones")
    setting = catalog.Setting(
        data=data,
        inner=inner,
        single_step=inner in catalog.INNER and catalog.INNER[inner].single_step,
        epsilon=epsilon,
        first_drop=milestones[0] if isinstance(milestones, list) and milestones else None,
    )
    outer = method.setdefault("outer", preset.outer)
    if str(outer) not in catalog.OUTER:
        problems.append(Problem("method.outer", unknown_name(outer, catalog.OUTER, "outer")))
    _fill_beta(method, preset, problems)
    optional: dict[str, dict[str, catalog.Entry]] = {
        "weighting": catalog.WEIGHTING,
        "regularizer": catalog.REGULARIZER,
        "weight_perturbation": catalog.WEIGHT_PERTURBATION,
    }
    for slot, entries in optional.items():
        _fill_slot(method, slot, preset, entries, setting, problems)
    weighting = method["weighting"]
    if isinstance(weighting, dict) and weighting.get("applies_to") == "divergence" and not _has_divergence(outer):
        problems.append(
            Problem(
                "method.weighting.applies_to",
                f"'divergence': {outer} has no KL term to weight; allowed here: all, classification",
            )
        )


def _fill_slot(
    method: dict[str, Any], slot: str, preset: catalog.Preset, entries: Mapping[str, catalog.Entry],
    setting: catalog.Setting | None, problems: list[Problem],
) -> None:  # fmt: skip
    chosen = preset.slot(slot)
    if slot not in method:
        method[slot] = chosen
    if method[slot] is None and slot != "inner":
        return
    if not isinstance(method[slot], (str, dict)):
        problems.append(Problem(f"method.{slot}", f"{method[slot]!r}: name one of: {', '.join(sorted(entries))}"))
        method[slot] = {"name": None}
        return
    picked = table(method, slot)
    if "name" not in picked:
        if chosen is None:
            problems.append(
                Problem(f"method.{slot}", f"{method['name']} has none; add its name, one of: {', '.join(entries)}")
            )
            method[slot] = None
            return
        picked["name"] = chosen["name"]
    name = str(picked["name"])
    published = catalog.PUBLISHED.get(name)
    defaults = published(setting) if published is not None and setting is not None else {}
    if chosen is not None and chosen["name"] == name:
        defaults |= chosen
    fill_choice(picked, f"method.{slot}", entries, problems, defaults)


def _fill_beta(method: dict[str, Any], preset: catalog.Preset, problems: list[Problem]) -> None:
    takes_beta = _has_divergence(method["outer"])
    beta = method.get("beta")
    if beta is not None and not takes_beta:
        with_beta = [name for name, row in catalog.PRESETS.items() if _has_divergence(row.outer)]
        hint = " Its regularizer has one: method.regularizer.beta." if preset.regularizer == "der" else ""
        problems.append(
            Problem(
                "method.beta",
                f"{beta!r}: {method['name']} has no beta in its loss.{hint} "
                f"Methods with one: {', '.join(sorted(with_beta))}.",
            )
        )
    elif beta is not None:
        complaint = catalog.OUTER[method["outer"]].parameters["beta"].refuse(beta)
        if complaint is not None:
            problems.append(Problem("method.beta", complaint))
    default = preset.beta if preset.beta is not None else 6.0
    method.setdefault("beta", default if takes_beta else None)


def _has_divergence(outer: object) -> bool:
    return str(outer) in catalog.OUTER and "beta" in catalog.OUTER[str(outer)].parameters
