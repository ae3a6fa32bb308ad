"""What training costs, in passes as `catalog` counts them. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainers import catalog

if TYPE_CHECKING:
    from trainers.config import Experiment


def training_passes(experiment: Experiment) -> int:
    """Passes per training image: attack, then forward and full backward of x*, and of x where a slot needs it.

    A weight perturbation takes the same loss once more. What an attack saw at its start in another batch-norm mode, or
    with other weights than the update, is seen again.
    """
    method, attack = experiment.method, experiment.attack
    inner, outer = catalog.INNER[method.inner.name], catalog.OUTER[method.outer.name]
    needs, own = outer.needed(method.outer.parameters), outer.passes
    for entries, choice in ((catalog.WEIGHTING, method.weighting), (catalog.REGULARIZER, method.regularizer)):
        if choice is not None:
            entry = entries[choice.name]
            needs, own = needs | entry.needed(choice.parameters), own + entry.passes
    is_perturbed = method.weight_perturbation is not None
    as_updated = catalog.sees_attack_as_update(attack.batch_norm, perturbed=is_perturbed)
    loss = 3 + 3 * ("natural_logits" in needs) + own
    loss += 2 * ("natural_gradient" in needs and not (inner.starts_at_image and as_updated))
    loss += "start_logits" in needs and not as_updated
    return 2 * attack.steps + inner.passes + (2 if is_perturbed else 1) * loss
