"""What of an experiment is allowed but worth knowing before it runs. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainers import catalog

if TYPE_CHECKING:
    from trainers.config import Choice, Experiment


_FEW = 20  # a slot that acts in fewer than one epoch of so many changes little


def notices(experiment: Experiment) -> list[str]:
    """One sentence each, beginning with the field that it is about."""
    return [
        *_late_slots(experiment),
        *_abnormal_under_kl(experiment),
        *_unpublished_strengths(experiment),
        *_batch_norm_of_another_attack(experiment),
        *_short_of_epsilon(experiment),
    ]


def _late_slots(experiment: Experiment) -> Iterator[str]:
    for slot, first in experiment.first_epochs.items():
        left = experiment.epochs - first
        if first > 0 and left <= max(1, experiment.epochs // _FEW):
            choice = getattr(experiment.method, slot)
            last = {0: "never acts", 1: "acts in the last epoch alone"}
            acts = last.get(left, f"acts in the last {left} epochs alone")
            start = choice.parameters["start"]
            yield f"method.{slot}.start: {start:g} of {experiment.epochs} epochs: {choice.name} {acts}"


def _abnormal_under_kl(experiment: Experiment) -> Iterator[str]:
    regularizer = experiment.method.regularizer
    on_abnormal = regularizer is not None and regularizer.parameters.get("samples") == "abnormal"
    if on_abnormal and experiment.method.inner.name == "pgd_kl":
        yield (
            "method.regularizer.samples: abnormal examples are defined by the cross-entropy, and the inner attack "
            "pgd_kl raises another loss: expect many, without catastrophic overfitting; 'all' has no such problem"
        )


def _unpublished_strengths(experiment: Experiment) -> Iterator[str]:
    regularizer, epsilon, data = experiment.method.regularizer, experiment.attack.epsilon, experiment.data.name
    if regularizer is None or regularizer.name != "aaer":
        return
    levels, published = catalog.nearest_of_aaer(data, experiment.method.inner.name, epsilon)
    elsewhere = "" if data.startswith("cifar") else f"; for {data} there are none"
    if not published.items() <= regularizer.parameters.items():
        return
    if elsewhere or abs(levels - 255 * epsilon) > 1e-6:
        yield (
            f"method.regularizer: loss_strength {published['loss_strength']:g} and variation_strength "
            f"{published['variation_strength']:g} of aaer are published for ε = {levels}/255, the nearest to "
            f"{epsilon.plain()}{elsewhere}"
        )


def _batch_norm_of_another_attack(experiment: Experiment) -> Iterator[str]:
    """The mode belongs to the attack, and its default comes from the preset, whatever attack is put into it."""
    inner, mode, name = experiment.method.inner, experiment.attack.batch_norm, experiment.method.name
    published = {row.batch_norm for row in catalog.PRESETS.values() if _is_attack(inner, row.slot("inner") or {})}
    if published and mode not in published and mode == catalog.PRESETS[name].batch_norm:
        yield (
            f"attack.batch_norm: {mode}, as {name} has it; methods with the inner attack {inner.name} have "
            f"{' or '.join(sorted(published))}: where attacks are compared, set it for all of them"
        )


def _short_of_epsilon(experiment: Experiment) -> Iterator[str]:
    attack = experiment.attack
    reach = attack.steps * attack.step_size / attack.epsilon
    if attack.steps > 1 and reach < 1 - 1e-6:
        yield (
            f"attack.step_size: {attack.step_size.text} in {attack.steps} steps moves pixels by at most {reach:.3g} ε: "
            "the training attack is weaker than its ε says"
        )


def _is_attack(inner: Choice, slot: Mapping[str, Any]) -> bool:
    """Whether a preset's inner attack is this one, up to numbers: PGD from a Gaussian start is another than PGD."""
    parameters = catalog.INNER[inner.name].parameters
    named = {key: parameter.default for key, parameter in parameters.items() if parameter.choices is not None}
    return slot.get("name") == inner.name and all(
        slot.get(key, default) == inner.parameters[key] for key, default in named.items()
    )
