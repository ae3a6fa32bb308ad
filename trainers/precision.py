"""What a device makes of a precision: TF32 on GPUs that have it, bfloat16 on CPUs that may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Whether convolutions and matrix products may round their inputs to TF32; set back at the end.

    PyTorch allows TF32 in convolutions by default, so 'float32' would not be float32.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = allowed
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def knows_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16; elsewhere they are emulated, slower than float32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any("bf16" in name and bool(there) for name, there in capabilities.items())


def precision_notices(precision: str, device: torch.device) -> list[str]:
    """What is worth knowing before an experiment of this `precision` computes on `device`, a CPU of this machine."""
    if precision != "bfloat16" or device.type != "cpu" or knows_bfloat16():
        return []
    return ["precision: bfloat16: this CPU has no matrix units for it; float32 is many times faster here"]
