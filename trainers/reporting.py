"""What is said of a run, for terminals and log files: on what it computes, and one line about one epoch."""

from __future__ import annotations

import torch

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


def on_device(device: torch.device) -> str:
    """For example `on the GPU NVIDIA H100 (cuda:0)`, or `on the CPU, 4 threads`."""
    if device.type == "cuda":
        return f"on the GPU {torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"on the CPU, {threads} thread{'s' * (threads > 1)}"
