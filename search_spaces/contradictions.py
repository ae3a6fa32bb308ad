"""What in a study contradicts itself although each field is fine, or would never act."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.addresses import REFUSAL, has_password
from search_spaces.space import corners
from trainers.config import Experiment
from trainers.problems import InvalidInput, Problem

if TYPE_CHECKING:
    from search_spaces.study import Study


def contradictions(study: Study) -> list[Problem]:
    """All of them; empty if there are none."""
    problems = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", study.name):
        problems.append(Problem("name", f"{study.name!r}: letters, digits, '.', '_' and '-' only (it names a folder)"))
    addresses = {"search.storage": study.search.storage, "tracking.uri": study.tracking.uri}
    problems += [Problem(field, REFUSAL) for field, uri in addresses.items() if uri is not None and has_password(uri)]
    for metric, constraint in study.search.constraints.items():
        if constraint.baseline is not None and constraint.baseline >= len(study.search.start):
            field = f"search.constraints.{metric}.baseline"
            problems.append(Problem(field, f"{constraint.baseline}: search.start has {len(study.search.start)} points"))
    experiments = _experiments(study)
    problems += [
        *_incomparable(study, experiments), *_undivided_batches(study, experiments),
        *_idle_pruning(study, experiments), *_unsuited_sampler(study), *_crooked_ladder(study, experiments),
        *_shared_gpus(study),
    ]  # fmt: skip
    return problems


def _incomparable(study: Study, experiments: Sequence[Experiment]) -> list[Problem]:
    """Points of the space at which robust accuracy would be measured at another ε."""
    if any(dimension.path == "evaluation.epsilon" for dimension in study.space):
        return [Problem("space.evaluation.epsilon", "robust accuracies at different epsilons do not compare: fix it")]
    epsilons = (experiment.evaluation.epsilon for experiment in experiments)
    found = {epsilon: epsilon.text for epsilon in epsilons}
    if len(found) < 2:
        return []
    each = f"would be {' or '.join(found.values())}, by the point of the space"
    message = f"{each}: robust accuracies at different epsilons do not compare, so this study must fix it"
    return [Problem("experiment.evaluation.epsilon", message)]


def _unsuited_sampler(study: Study) -> list[Problem]:
    """A grid needs finitely many plain values; CMA-ES knows one objective and an unconditional space of numbers."""
    sampler, problems = study.search.sampler, []
    for dimension in study.space:
        field = f"space.{dimension.path}"
        if sampler == "grid" and dimension.num_values is None:
            problems.append(Problem(field, "a grid needs choices, integer: true or a step"))
        if sampler == "grid" and any(isinstance(choice, list | dict) for choice in dimension.choices or ()):
            # Optuna looks values up in a table.
            named = f"variants: {{NAME: {{{dimension.path}: …}}, …}}"
            problems.append(Problem(field, f"a grid takes no lists and tables as choices; name each as a row, {named}"))
        if sampler == "cmaes" and (dimension.choices is not None or dimension.when):
            problems.append(Problem(field, "cmaes needs low and high, without choices and conditions; tpe takes both"))
    if sampler == "cmaes" and len(study.search.objectives) > 1:
        problems.append(Problem("search.objectives", "cmaes knows one objective; nsga2, tpe and gp take two"))
    return problems


def _idle_pruning(study: Study, experiments: Sequence[Experiment]) -> list[Problem]:
    """Comparisons that never happen, or that would compare schedules of different lengths."""
    prune = study.search.stop.prune
    if prune is None:
        return []
    lengths = {experiment.epochs for experiment in experiments}
    if len(lengths) > 1:
        return [Problem("search.stop.prune", "trials of different lengths can't be compared: fix epochs")]
    epochs = min(lengths, default=math.inf)
    if prune.grace_epochs >= epochs:
        given = prune.grace_epochs
        return [Problem("search.stop.prune.grace_epochs", f"{given}: must be below the {epochs} epochs of a trial")]
    return []


def _crooked_ladder(study: Study, experiments: Sequence[Experiment]) -> list[Problem]:
    """Rungs that drop nothing that the one before has left, drop what is to be confirmed, or want too many images."""
    problems, before = [], None
    holdout = min((experiment.data.holdout for experiment in experiments), default=None)
    for place, rung in enumerate(study.confirm.ladder):
        field = f"confirm.ladder.{place}"
        if rung.keep < study.confirm.top:
            problems.append(Problem(f"{field}.keep", f"{rung.keep}: confirm.top wants {study.confirm.top}"))
        if before is not None and rung.keep >= before:
            problems.append(Problem(f"{field}.keep", f"{rung.keep}: the rung before leaves {before} already"))
        if holdout is not None and rung.samples > holdout:
            problems.append(Problem(f"{field}.samples", f"{rung.samples}: data.holdout is {holdout}"))
        before = rung.keep
    return problems


def _undivided_batches(study: Study, experiments: Sequence[Experiment]) -> list[Problem]:
    batches = {experiment.optimizer.batch_size for experiment in experiments}
    sections = {"resources.workers": study.resources.workers, "confirm.workers": study.confirm.workers or 1}
    problems = []
    for field, workers in sections.items():
        undivided = ", ".join(str(batch) for batch in sorted(batches) if batch % workers)
        if undivided:
            message = f"{workers}: a global batch of {undivided} can't be divided evenly among them"
            problems.append(Problem(field, message))
    return problems


def _experiments(study: Study) -> list[Experiment]:
    """Those at the corners of the space that are valid, or the base alone; the others are reported elsewhere."""
    base: list[dict[str, Any]] = [{}]
    for points in (corners(study.space), base):
        found = []
        for point in points:
            with contextlib.suppress(InvalidInput):
                found.append(study.experiment_for(point))
        if found:
            return found
    return []


def _shared_gpus(study: Study) -> list[Problem]:
    """Parts of GPUs that Ray or NCCL would refuse, after everything has started."""
    each = study.resources.gpus_per_worker
    field = "resources.gpus_per_worker"
    if each > 1 and each != int(each):
        return [Problem(field, f"{each:g}: above 1 only whole numbers")]
    if 0 < each < 1:
        workers = {"resources.workers": study.resources.workers, "confirm.workers": study.confirm_resources.workers}
        for name, count in workers.items():
            if count > 1:
                return [
                    Problem(field, f"{each:g}: {name} is {count}, and the workers of a group need whole GPUs (NCCL)")
                ]
    return []
