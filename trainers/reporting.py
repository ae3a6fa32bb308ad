"""One line about one epoch, for terminals and log files."""

from __future__ import annotations

from trainers.diagnostics.overfitting import CLEAN_ACCURACY, REFERENCE_DELTA_ENERGY, ROBUST_ACCURACY
from trainers.records import EpochRecord


def describe(record: EpochRecord, epochs: int) -> str:
    """For example `epoch 3/30  loss 1.234  clean 91.0 %  PGD-10 45.5 %  ΔE -0.31  1.9 s`."""
    metrics = record.metrics
    return (
        f"epoch {record.epoch + 1}/{epochs}  loss {metrics['train/loss']:.3f}  "
        f"clean {100 * metrics[CLEAN_ACCURACY]:.1f} %  PGD-10 {100 * metrics[ROBUST_ACCURACY]:.1f} %  "
        f"ΔE {metrics[REFERENCE_DELTA_ENERGY]:+.2f}  {metrics['epoch/seconds']:.1f} s"
    )
