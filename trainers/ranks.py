"""Who am I among the workers? Rank, world size and device, and collectives that do nothing when alone."""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

# DDP imports this module, whose defaults keep the process group of that moment: after `init_process_group`, that is
# ours, which then outlives its end, and now and then its threads abort the interpreter at its exit.
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process's place in the group. Whoever starts the process group ends it; this class only uses it."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device | str | None = None) -> Ranks:
        """From the default process group if there is one, else alone. `device` defaults to a GPU if there is one."""
        joined = dist.is_available() and dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
        return cls(rank, size, local_device() if device is None else torch.device(device))

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ranks of a detached statistic."""
        return self.sum(values.detach().clone()) / self.world_size

    def minimum(self, values: Tensor) -> Tensor:
        """The least over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MIN)
        return values

    def concatenate(self, values: Tensor) -> Tensor:
        """Rows of all ranks in rank order; the ranks may hold different numbers of rows."""
        if self.world_size == 1:
            return values
        counts = torch.zeros(self.world_size, dtype=torch.long, device=values.device)
        counts[self.rank] = len(values)
        sizes = self.sum(counts).tolist()
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    def share(self, count: int) -> slice:
        """This rank's contiguous part of `count` rows; parts differ by one row at most."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        received: T = box[0]
        return received

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on every rank; what it raises there is raised on every rank.

        An error of any kind, for the others would wait for a first rank that is gone. One that can't be sent arrives
        as a RuntimeError.
        """
        if self.world_size == 1:
            return work()
        result, refused = None, None
        if self.is_first:
            try:
                result = work()
            except Exception as error:
                refused = _sendable(error)
        result, refused = self.broadcast((result, refused))
        if refused is not None:
            raise refused
        return cast(T, result)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """`model` wrapped for DDP, itself when alone.

        Buffers are not overwritten by rank 0's at every forward: batch-norm statistics are averaged after the epoch.
        """
        if self.world_size == 1:
            return model
        # Newer PyTorch has another name for the switch, and warns at the old one.
        parameters = inspect.signature(DistributedDataParallel.__init__).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        options: dict[str, Any] = {switch: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, **options)

    def average_buffers(self, model: nn.Module) -> None:
        """Replace floating-point buffers (batch-norm statistics, which drift per rank) by their mean over ranks.

        Those that no checkpoint holds are constants, equal on all ranks: a mean would round them.
        """
        if self.world_size == 1:
            return
        saved = model.state_dict()
        buffers: Sequence[Tensor] = [
            buffer
            for name, buffer in model.named_buffers()
            if name in saved and buffer.is_floating_point() and buffer.numel()
        ]
        if not buffers:
            return
        flat = self.sum(torch.cat([b.detach().flatten() for b in buffers])) / self.world_size
        for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def local_device() -> torch.device:
    """The GPU of this process among those that it sees, which may be its own alone; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def _sendable(error: Exception) -> Exception:
    """The error, or its text where it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
