"""On what a Ray worker computes: on what was reserved for it, never on something else that happens to be there."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from trainers.problems import InvalidInput

if TYPE_CHECKING:
    import torch


def reserved_device(gpus: float) -> torch.device:
    """The CPU if no GPU was asked for, else the GPU that Ray shows this process.

    Raises InvalidInput if PyTorch can't use it: training on the CPU instead would take days, and nobody would know why.
    """
    import torch

    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidInput.single(
            "resources.gpus_per_worker",
            f"{gpus:g}: Ray reserved a GPU on {socket.gethostname()}, but PyTorch {torch.__version__} can use none "
            "there (a build for CPUs, or no driver?); `orchestrator doctor --address` tests every node",
        )
    return torch.device("cuda", 0)
