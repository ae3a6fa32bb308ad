"""Records of made-up runs: what the rules of early stopping read."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.records import EpochRecord


def records(
    robust: Sequence[float],
    energy: Sequence[float] | None = None,
    *,
    checks: Sequence[dict[int, tuple[float, float]]] = (),
) -> list[EpochRecord]:
    """One record an epoch; `checks` are (accuracy, ΔE) by iteration, epoch by epoch."""
    energy = energy or [0.0] * len(robust)
    made = []
    for epoch, (accuracy, delta) in enumerate(zip(robust, energy, strict=True)):
        metrics = {
            "val/clean_accuracy": 0.9,
            "val/pgd10_accuracy": accuracy,
            "val/chance_accuracy": 0.1,
            "probe/adversarial_accuracy": accuracy,
            "probe_reference/pgd10_accuracy": accuracy,
            "probe/delta_energy/mean": delta,
            "probe_reference/delta_energy/mean": delta,
            "epoch/seconds": 2.0 + epoch,
        }
        for iteration, (checked, checked_delta) in (checks[epoch] if checks else {}).items():
            metrics[f"check/{iteration:04d}/pgd5_accuracy"] = checked
            metrics[f"check/{iteration:04d}/delta_energy/mean"] = checked_delta
        made.append(EpochRecord(epoch, 1.7e9 + 10 * epoch, metrics))
    return made
