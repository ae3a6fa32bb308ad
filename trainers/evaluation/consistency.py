"""Signs in the flags of evaluations that their robust accuracy may not be what it seems. No torch.

Later stages attack only survivors, so a stage's own accuracy is known where it comes first (and that of a whole list:
its last number); the others are bounded by what they took. The checks use nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainers.catalog import DATASETS
from trainers.catalog.attacks import stages
from trainers.evaluation.result import EvaluationResult

# Gradient attacks on the cross-entropy: those that a model without useful gradients withstands.
CROSS_ENTROPY = ("pgd20", "pgd50-10", "apgd-ce")
# What must not be weaker: attack -> attacks that find at least as much.
STRONGER = {"pgd20": ("pgd50-10", "apgd-ce", "autoattack"), "pgd50-10": ("autoattack",)}


@dataclass(frozen=True)
class ConsistencyRule:
    """Thresholds as shares of the images; whatever fewer than `fewest` images show is chance.

    `gap` is between a cross-entropy attack and the worst case (usual: 3 to 5.5 points on CIFAR, up to 7.5 on SVHN); it
    varies from sample to sample and must exceed its threshold by `deviations` standard errors. `square` is what Square
    takes from gradient attacks, `tolerance` by how much a weaker attack may find more.
    """

    gap: float = 0.08
    square: float = 0.002
    tolerance: float = 0.003
    fewest: int = 2
    deviations: float = 1.0


def inconsistencies(evaluations: Sequence[EvaluationResult], rule: ConsistencyRule | None = None) -> tuple[str, ...]:
    """Warnings about one evaluation, or about several of one model that differ in the attack only.

    Several tell more: the attacks that come first in each are compared as well. Raises ValueError for evaluations of
    different models, images or settings.
    """
    rule = rule or ConsistencyRule()
    if len({(evaluation.subject, replace(evaluation.protocol, attack="")) for evaluation in evaluations}) > 1:
        raise ValueError("only evaluations of one model that differ in nothing but the attack can be checked together")
    found = [*_gap(evaluations, rule), *_order_between(evaluations, rule)]
    for evaluation in evaluations:
        found += [*_misfit(evaluation), *_square(evaluation, rule), *_order_within(evaluation, rule)]
    return tuple(dict.fromkeys(found))


def with_warnings(evaluation: EvaluationResult) -> EvaluationResult:
    """The same evaluation with what its own flags warn of added."""
    return replace(evaluation, warnings=(*evaluation.warnings, *inconsistencies([evaluation])))


def _misfit(evaluation: EvaluationResult) -> list[str]:
    """Anyone's weights that know next to nothing: a stride has no tensor whose shape would show that it is wrong."""
    chance = 1 / DATASETS[evaluation.protocol.data.split()[0]].num_classes
    clean = evaluation.accuracies["clean"]
    if evaluation.foreign is None or clean >= 2 * chance:
        return []
    return [
        f"the clean accuracy is only {100 * clean:.1f} % (chance: {100 * chance:.1f} %): the weights may be for "
        "another stride or other options (--model-option), which shapes do not show, or for another --normalization"
    ]


def _gap(evaluations: Sequence[EvaluationResult], rule: ConsistencyRule) -> list[str]:
    worst = min(evaluations, key=lambda evaluation: evaluation.robust_accuracy)
    stage, alone = max(
        ((stage, share) for stage, share in _alone(evaluations).items() if stage in CROSS_ENTROPY),
        key=lambda pair: pair[1],
        default=("", 0.0),
    )
    gap = alone - worst.robust_accuracy
    error = math.sqrt(max(gap * (1 - gap), 0.0) / (worst.flags.stop - worst.flags.start))
    if not _exceeds(gap, rule.gap + rule.deviations * error, worst, rule):
        return []
    return [
        f"{stage} leaves {_points(gap)} more than the worst case of {worst.protocol.attack} (suspicious above "
        f"{_points(rule.gap)}): the gradient of the cross-entropy may be masked"
    ]


def _square(evaluation: EvaluationResult, rule: ConsistencyRule) -> list[str]:
    taken = _taken(evaluation)
    before = list(taken)[: list(taken).index("square")] if "square" in taken else []
    if not before or not _exceeds(taken["square"], rule.square, evaluation, rule):
        return []
    return [
        f"square, without gradients, takes {_points(taken['square'])} from what {', '.join(before)} left (suspicious "
        f"above {_points(rule.square)}): gradients may be masked"
    ]


def _order_within(evaluation: EvaluationResult, rule: ConsistencyRule) -> list[str]:
    taken = _taken(evaluation)
    order = list(taken)
    return [
        f"{weaker} takes {_points(taken[weaker])} from what the stronger {stronger} left"
        for weaker, others in STRONGER.items()
        for stronger in others
        if weaker in taken and set(stages(stronger)) <= set(order[: order.index(weaker)])
        and _exceeds(taken[weaker], rule.tolerance, evaluation, rule)
    ]  # fmt: skip


def _order_between(evaluations: Sequence[EvaluationResult], rule: ConsistencyRule) -> list[str]:
    alone = _alone(evaluations)
    final = {evaluation.protocol.attack: evaluation.robust_accuracy for evaluation in evaluations}
    accuracies = alone | final
    return [
        f"{stronger} leaves {_points(accuracies[stronger] - accuracies[weaker])} more than the weaker {weaker}"
        for weaker, others in STRONGER.items()
        for stronger in others
        if weaker in alone and stronger in accuracies
        and _exceeds(accuracies[stronger] - accuracies[weaker], rule.tolerance, evaluations[0], rule)
    ]  # fmt: skip


def _alone(evaluations: Sequence[EvaluationResult]) -> dict[str, float]:
    """Accuracy under each attack that came first somewhere, so that it met all the images."""
    first = [list(evaluation.accuracies.items())[1:2] for evaluation in evaluations]
    return {stage: share for pairs in first for stage, share in pairs}


def _taken(evaluation: EvaluationResult) -> dict[str, float]:
    """Share of all images that each stage brought down."""
    shares = list(evaluation.accuracies.items())
    return {stage: shares[place][1] - share for place, (stage, share) in enumerate(shares[1:])}


def _exceeds(share: float, threshold: float, evaluation: EvaluationResult, rule: ConsistencyRule) -> bool:
    images = evaluation.flags.stop - evaluation.flags.start
    count = round(share * images)  # of whole images: 520 - 518 of 1000 is 0.2 points, not a rounding error more
    return count >= rule.fewest and count > threshold * images + 1e-6


def _points(share: float) -> str:
    return f"{100 * share:.2f} points"
