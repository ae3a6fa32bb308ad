"""Whether a trial should stop: pure functions of its records and of what other trials reached before it.

Not Tune's schedulers or Optuna's pruners: those of Tune forget what they saw when the driver dies, and Optuna's refuse
studies of two objectives. Neither compares within one method only, and ranks across methods say nothing early on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from search_spaces.stopping import Pruning, Stopping
from trainers.config import Experiment
from trainers.diagnostics.overfitting import (
    CHECKED_ACCURACY,
    CHECKED_DELTA_ENERGY,
    REFERENCE_DELTA_ENERGY,
    ROBUST_ACCURACY,
    Onset,
    checked_onsets,
    onsets,
)
from trainers.records import EpochRecord

_LEAST_PEERS = 3


@dataclass(frozen=True)
class Stop:
    """A decision: `rule` is a field of `search.stop`, `epoch` (0-based) the last one that counts."""

    rule: str
    epoch: int
    reason: str


def overfitting_stop(records: Sequence[EpochRecord], experiment: Experiment, rules: Stopping) -> Stop | None:
    """Whether overfitting stops a run after its newest record; `records` are all from epoch 0 on.

    A check inside an epoch counts only where ΔE(x) confirms it: it attacks few images, once.
    """
    if not rules.catastrophic and rules.robust is None:
        return None
    newest = records[-1].epoch
    found = {onset.kind: onset for onset in onsets(records, experiment)}
    if rules.catastrophic:
        if "catastrophic" in found:
            return Stop("catastrophic", newest, _collapse(records, found["catastrophic"].epoch))
        checks = checked_onsets(records, experiment.evaluation.catastrophic)
        confirmed = next((check for check in checks if check.confirmed), None)
        if confirmed is not None:
            return Stop("catastrophic", newest, _checked_collapse(records, confirmed))
    if rules.robust is not None and "robust" in found:
        best = max(records, key=lambda record: (record.metrics[ROBUST_ACCURACY], -record.epoch))
        if newest - best.epoch >= rules.robust.patience:
            accuracy, now = best.metrics[ROBUST_ACCURACY], records[-1].metrics[ROBUST_ACCURACY]
            return Stop(
                "robust",
                newest,
                f"robust overfitting at epoch {found['robust'].epoch + 1}: robust accuracy {100 * accuracy:.1f} % at "
                f"epoch {best.epoch + 1} -> {100 * now:.1f} % at epoch {newest + 1}",
            )
    return None


def pruning_stop(pruning: Pruning, method: str, curve: Sequence[float], peers: Sequence[float]) -> Stop | None:
    """Whether a trial that is compared after its newest epoch falls behind.

    `curve` is its held-out robust accuracy, a fraction an epoch; `peers` is that of the trials which were compared at
    the same epoch before it; fewer than three say too little. Halving lets the best ceil(n / reduction) of n go on,
    itself and its equals included (ASHA, Li et al. 2020, arXiv 1810.05934, as a stopping rule); the median rule is
    that of Golovin et al. 2017 (Vizier).
    """
    if len(peers) < _LEAST_PEERS:
        return None
    where = f"{pruning.rule} at epoch {len(curve)}: "
    if pruning.rule == "median":
        best = max(curve)
        if best >= median(peers):
            return None
        reason = (
            f"best robust accuracy {100 * best:.1f} % is below the median {100 * median(peers):.1f} % of {len(peers)} "
            f"other {method} trials"
        )
    else:
        better = sum(peer > curve[-1] for peer in peers)
        if better < math.ceil((len(peers) + 1) / (pruning.reduction or 2)):
            return None
        reason = f"robust accuracy {100 * curve[-1]:.1f} % is behind {better} of {len(peers)} other {method} trials"
    return Stop("prune", len(curve) - 1, where + reason)


def _collapse(records: Sequence[EpochRecord], epoch: int) -> str:
    best = max(record.metrics[ROBUST_ACCURACY] for record in records[:epoch])
    rise = records[epoch].metrics[REFERENCE_DELTA_ENERGY] - records[epoch - 1].metrics[REFERENCE_DELTA_ENERGY]
    now = records[epoch].metrics[ROBUST_ACCURACY]
    return (
        f"catastrophic overfitting at epoch {epoch + 1}: robust accuracy {100 * best:.1f} -> {100 * now:.1f} %, "
        f"ΔE {rise:+.2f}"
    )


def _checked_collapse(records: Sequence[EpochRecord], check: Onset) -> str:
    metrics = records[check.epoch].metrics
    accuracy = metrics[CHECKED_ACCURACY.format(iteration=check.iteration)]
    energy = metrics[CHECKED_DELTA_ENERGY.format(iteration=check.iteration)]
    return (
        f"catastrophic overfitting at epoch {check.epoch + 1}, step {check.iteration}: PGD-5 accuracy fell to "
        f"{100 * accuracy:.1f} %, ΔE rose to {energy:.2f}"
    )
