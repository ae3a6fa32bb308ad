"""What a device makes of a precision: TF32 on GPUs that have it, bfloat16 on CPUs that may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Whether convolutions and matrix products may round their inputs to TF32; set back at the end.

    PyTorch allows TF32 in convolutions by default, so 'float32' would not be float32.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    before = [(flag, _held(flag)) for flag in (cudnn, matmul)]
    finer = (cudnn.conv, cudnn.rnn, matmul)
    held = [setting.fp32_precision for setting in finer]
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    for setting in finer:  # or they would take after a setting of all of them
        setting.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        mixed = [flag for flag, value in before if value is None]
        for flag, value in before:
            if value is not None:
                flag.allow_tf32 = value
        for setting, precision in zip(finer, held, strict=True):
            if (matmul if setting is matmul else cudnn) in mixed:
                setting.fp32_precision = precision


def _held(flag: Any) -> bool | None:
    """What it says; None after PyTorch's newer, finer settings were used, for which it may have no word."""
    try:
        return bool(flag.allow_tf32)
    except RuntimeError:
        return None


def knows_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16; elsewhere they are emulated, slower than float32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any("bf16" in name and bool(there) for name, there in capabilities.items())


def precision_notices(precision: str, device: torch.device) -> list[str]:
    """What is worth knowing before an experiment of this `precision` computes on `device`, a CPU of this machine."""
    if device.type != "cpu":
        return []
    if precision == "tf32":
        return ["precision: tf32: CPUs have none: this is float32, under another digest"]
    if precision != "bfloat16" or knows_bfloat16():
        return []
    return ["precision: bfloat16: this CPU has no matrix units for it; float32 is many times faster here"]
