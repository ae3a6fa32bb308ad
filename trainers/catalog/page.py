"""docs/methods.md: every preset, slot entry and recipe as Markdown, from the catalog alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trainers import catalog
from trainers.config import Choice, Method, parse

_INTRODUCTION = """\
# Methods

<!-- Written by `make docs` from the catalog; a test holds it to that. -->

A method is one choice in each slot; presets carry the papers' names. An energy is E(x) = −logsumexp z(x), E(x,y) =
−z_y(x); ΔE is natural minus adversarial. x* is the adversarial image, x the natural one, p the softmax. The loss is the
mean over the batch. Passes are those of one training image, evaluation aside: a forward counts 1, a backward to the
input 1, to the weights 1 more. Parameters are given where they are not their slot entry's default (on CIFAR-10 at
ε = 8/255); `orchestrator methods NAME` shows all with their ranges."""

_TITLES = {
    "inner": "Inner attacks",
    "outer": "Outer losses",
    "weighting": "Weightings",
    "regularizer": "Regularizers",
    "weight_perturbation": "Weight perturbation",
}


def methods_page() -> str:
    """The whole page, ending in a newline."""
    parts = [_INTRODUCTION, "## Presets", _presets()]
    for slot, entries in catalog.SLOTS.items():
        parts += [f"## {_TITLES[slot]} (`method.{slot}`)", _entries(entries)]
    parts += [
        "## Recipes (`recipe`)",
        "How the papers train. What is given beside a recipe replaces its values; ε and steps are this project's, so "
        "that rows compare.",
        _table(
            ("recipe", "what it sets", "differs on", "source"),
            [
                (f"`{name}`", recipe.about, ", ".join(recipe.on_data) or "", recipe.source)
                for name, recipe in catalog.RECIPES.items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _presets() -> str:
    rows = []
    for name, preset in catalog.PRESETS.items():
        experiment = parse({"method": name, "data": "cifar10"})
        method, attack = experiment.method, experiment.attack
        inner = f"`{method.inner.name}`" + (f", {attack.steps} steps" if attack.steps > 1 else "")
        settings = [] if method.beta is None else [f"β {method.beta:g}"]
        for slot, entries in catalog.SLOTS.items():
            settings += _settings(getattr(method, slot), entries)
        passes = str(experiment.training_passes)
        rows.append(
            (f"`{name}`", _formula(method), inner, attack.batch_norm, ", ".join(settings), passes, preset.source)
        )
    return _table(("preset", "loss", "inner attack", "its batch norm", "parameters", "passes", "source"), rows)


def _formula(method: Method) -> str:
    """For example `CE(x) + w β KL(p(x) || p(x*)), w: margin; + der`."""
    classification, plus, divergence = catalog.OUTER[method.outer.name].about.partition(" + ")
    text = classification + plus + divergence
    if method.weighting is not None:
        text = {
            "all": f"w ({text})" if divergence else f"w {text}",
            "divergence": f"{classification} + w {divergence}",
            "classification": f"w {classification}{plus}{divergence}",
        }[method.weighting.parameters["applies_to"]]
        text += f", w: `{method.weighting.name}`"
    if method.regularizer is not None:
        text += f"; + `{method.regularizer.name}`"
    return text + (
        "" if method.weight_perturbation is None else f"; at weights moved by `{method.weight_perturbation.name}`"
    )


def _settings(choice: Choice | None, entries: Mapping[str, catalog.Entry]) -> list[str]:
    """What differs from the entry's own defaults, which are in its table."""
    if choice is None:
        return []
    fields = entries[choice.name].fields
    changed = {key: value for key, value in choice.parameters.items() if value != fields[key].default}
    return [f"{choice.name} {key} {_number(value)}" for key, value in changed.items() if key != "applies_to"]


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _entries(entries: Mapping[str, catalog.Entry]) -> str:
    rows = []
    for name, entry in entries.items():
        fields = "; ".join(
            f"`{key}` = {_number(parameter.default)}: {parameter.about}" for key, parameter in entry.fields.items()
        )
        rows.append((f"`{name}`", entry.about, fields, entry.source))
    return _table(("name", "what", "parameters", "source"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    print(methods_page(), end="")
