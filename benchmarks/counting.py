"""What a piece of code asks of the device, counted without a clock: tests hold these numbers, benchmarks print them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

Operation = Any


class Kernels(TorchDispatchMode):
    """Counts operations that compute something: neither views nor allocations nor marks for profilers."""

    idle = ("empty", "_record_function_enter_new", "_record_function_exit")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operation: Operation, types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Count, and do what was asked."""
        self.count += not operation.is_view and operation.overloadpacket.__name__ not in self.idle
        return operation(*args, **(kwargs or {}))


class HostSyncs(TorchDispatchMode):
    """Collects operations that make the host wait for the device: scalars, shapes and masks read back, host tensors."""

    waiting = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.lift_fresh)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, operation: Operation, types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Note it down, and do what was asked."""
        by_mask = operation.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if operation.overloadpacket in self.waiting or by_mask:
            self.seen.append(str(operation))
        return operation(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts floating-point operations of convolutions and matrix products, by PyTorch's formulas.

    Not PyTorch's own counting mode: it follows modules by hooks that `torch.autograd.grad` does not bear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operation: Operation, types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Do what was asked, and count."""
        result = operation(*args, **(kwargs or {}))
        formula = flop_registry.get(operation.overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=result)
        return result


def kernels_and_syncs(call: Callable[[], object]) -> tuple[int, int]:
    """How many kernels a call launches, and how often it waits for the device."""
    with Kernels() as kernels, HostSyncs() as syncs:
        call()
    return kernels.count, len(syncs.seen)
