"""A GPU that is made up, for machines without one: its tensors say `cuda:0`, and a CPU computes with their numbers.

What mixes devices, hands a GPU's tensor to NumPy or draws for one device from another's generator fails on it as on a
real one; what it computes is, to the last bit, what the CPU computes. Kernels, autocast and streams it does not have.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from trainers import randomness

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
# Between devices on purpose; and indices may come from the host.
_MOVING = (aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default)
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class OnGpu(Tensor):
    """A tensor on the GPU that is made up. To PyTorch's own code it is on the meta device, which has no numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        with _disable_current_modes():
            shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        made = Tensor._make_subclass(cls, shape)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(operation, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return GPU

    @property
    def is_meta(self) -> bool:
        return False

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"OnGpu({self.held})"

    def __format__(self, form: str) -> str:
        return format(self.held, form)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = OnGpu(copy.deepcopy(self.held.detach()))
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().__reduce_ex__(protocol)


class _Present(TorchDispatchMode):
    """While it is, tensors can be made on the GPU."""

    def __torch_dispatch__(
        self, operation: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(operation, args, kwargs or {})


# The seeds of the generators of the GPU: a generator is made anew on its way through PyTorch.
_seeds: set[int] = set()


def _compute(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given, form = tree_flatten((args, dict(kwargs)))
    from_gpu = any(isinstance(value, OnGpu) for value in given)
    device = kwargs.get("device")
    onto_gpu = from_gpu if device is None else torch.device(device).type in ("cuda", "meta")
    for value in given:
        if isinstance(value, torch.Generator) and (value.initial_seed() in _seeds) != onto_gpu:
            raise RuntimeError(f"{operation}: a generator of another device")
        on_host = isinstance(value, Tensor) and not isinstance(value, OnGpu) and value.dim() > 0
        if from_gpu and on_host and operation not in _MOVING and not (operation in _INDEXING and value is not given[0]):
            raise RuntimeError(f"{operation}: tensors on cuda:0 and on the CPU")
    held, options = tree_unflatten([value.held if isinstance(value, OnGpu) else value for value in given], form)
    if onto_gpu and device is not None:
        options["device"] = torch.device("cpu")
    found = operation(*held, **options)
    if operation is aten.copy_.default:
        return args[0]
    if not onto_gpu or operation is aten._local_scalar_dense.default:
        return found
    found = tree_map_only(Tensor, OnGpu, found)
    return return_and_correct_aliasing(operation, args, dict(kwargs), found) if from_gpu else found


@contextmanager
def stand_in_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The GPU, as long as the block lasts."""

    def seeded(device: torch.device | str, seed: int, purpose: str, *indices: int) -> torch.Generator:
        made = torch.Generator().manual_seed(randomness.derive_seed(seed, purpose, *indices))
        if torch.device(device).type == "cuda":
            _seeds.add(made.initial_seed())
        return made

    for place in ("loop", "data.batches", "diagnostics.measure", "evaluation.ranges"):
        monkeypatch.setattr(f"trainers.{place}.generator", seeded)
    monkeypatch.setattr(randomness, "generator", seeded)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Present():
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)
