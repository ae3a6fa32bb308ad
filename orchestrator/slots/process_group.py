"""Ray Train's process group as we use it: over the network that Ray uses, and without leaks at its start and end."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from orchestrator.host.interfaces import use_interface_of


class GroupConfig(TorchConfig):
    """A TorchConfig with these differences."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train calls when the workers are there."""
        return _GroupBackend


class _GroupBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_prepare)
        try:
            super().on_start(worker_group, backend_config)
        except Exception:
            # Train forgets this reservation, and every later group would wait for it.
            worker_group.get_worker_group_state().placement_group_handle.shutdown()
            raise


class TellMailbox(UserCallback):
    """Tells a group's mailbox when Train gives the group up."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Some worker has died or raised an error."""
        self._mailbox.lost.remote()


def _prepare() -> None:
    """What a worker needs before there is a group."""
    # It imports modules whose defaults hold on to the process group, if there is one when they are imported.
    import trainers.ranks  # noqa: F401

    use_interface_of(ray.util.get_node_ip_address())
