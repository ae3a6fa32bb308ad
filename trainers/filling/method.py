"""The slots of a method: what was not given comes from the preset, from the papers' settings, from the entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainers import catalog
from trainers.filling.choices import fill_choice, table
from trainers.problems import Problem


def fill_method(
    method: dict[str, Any], preset: catalog.Preset, schedule: Mapping[str, Any], data: str, model: str,
    epsilon: float, problems: list[Problem],
) -> None:  # fmt: skip
    """Fill every slot of `method` in place and report what contradicts the catalog."""
    inner = str(_chosen_name(method, "inner", preset))
    milestones = schedule.get("milestones")
    setting = catalog.Setting(
        data=data,
        model=model,
        inner=inner,
        single_step=inner in catalog.INNER and catalog.INNER[inner].single_step,
        epsilon=epsilon,
        first_drop=milestones[0] if isinstance(milestones, list) and milestones else None,
    )
    _fill_slot(method, "inner", preset, catalog.INNER, setting, problems)
    _fill_slot(method, "outer", preset, catalog.OUTER, setting, problems, apart=("beta",))
    outer = catalog.OUTER.get(str(method["outer"]["name"]))
    _fill_beta(method, preset, outer, model, problems)
    for slot, entries in catalog.OPTIONAL_SLOTS.items():
        _fill_slot(method, slot, preset, entries, setting, problems)
    weighting = method["weighting"]
    on_divergence = isinstance(weighting, dict) and weighting.get("applies_to") == "divergence"
    if on_divergence and outer is not None and not outer.divergence:
        problems.append(
            Problem(
                "method.weighting.applies_to",
                f"'divergence': {method['outer']['name']} has no KL term to weight; allowed here: all, classification",
            )
        )


def _chosen_name(method: Mapping[str, Any], slot: str, preset: catalog.Preset) -> object:
    """The name in a slot before it is filled."""
    usual = preset.slot(slot)
    assert usual is not None
    given = method.get(slot, usual)
    return given.get("name", usual["name"]) if isinstance(given, dict) else given


def _fill_slot(
    method: dict[str, Any], slot: str, preset: catalog.Preset, entries: Mapping[str, catalog.Entry],
    setting: catalog.Setting, problems: list[Problem], apart: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Fill one slot; fields `apart` have a place of their own in `method`."""
    chosen = preset.slot(slot)
    if slot not in method:
        method[slot] = chosen
    if method[slot] is None and slot in catalog.OPTIONAL_SLOTS:
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
    defaults = published(setting) if published is not None else {}
    if chosen is not None and chosen["name"] == name:
        defaults |= chosen
    fill_choice(picked, f"method.{slot}", entries, problems, defaults, apart)


def _fill_beta(
    method: dict[str, Any], preset: catalog.Preset, outer: catalog.Outer | None, model: str, problems: list[Problem]
) -> None:
    parameter = None if outer is None else outer.parameters.get("beta")
    beta = method.get("beta")
    if beta is not None and parameter is None and outer is not None:
        with_beta = [name for name, row in catalog.PRESETS.items() if "beta" in catalog.OUTER[row.outer].parameters]
        hint = " Its regularizer has one: method.regularizer.beta." if preset.regularizer == "der" else ""
        problems.append(
            Problem(
                "method.beta",
                f"{beta!r}: {method['name']} has no beta in its loss.{hint} "
                f"Methods with one: {', '.join(sorted(with_beta))}.",
            )
        )
    elif "beta" in method and parameter is not None and (complaint := parameter.refuse(beta)) is not None:
        problems.append(Problem("method.beta", complaint))
    default = catalog.published_beta(str(method["name"]), model) or preset.beta
    method.setdefault("beta", None if parameter is None else parameter.default if default is None else default)
