"""A slot of several workers: a trial actor and the group of Ray Train workers that it owns.

Starting such a group costs a minute, handing it the next job costs nothing: it outlives the trial. Actor and group talk
through a mailbox; a trial is stopped by the answer to its report, never by a kill. The group knows nothing between two
jobs: `fit` resumes from its own checkpoint.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.host.devices import reserved_device
from orchestrator.slots.mailbox import Mailbox
from orchestrator.slots.messages import Job, Report, report_of
from orchestrator.slots.reservations import note_placement_group
from orchestrator.slots.slot import failure_of, run_job
from search_spaces.study import Resources

if TYPE_CHECKING:
    from trainers.ranks import Ranks

_POLL_SECONDS = 1.0
# How long the other ranks may take to meet the error that one has met. Ray notices a lost node within half a minute.
_PATIENCE_SECONDS, _PATIENCE_IF_A_RANK_MAY_HAVE_DIED = 5.0, 60.0


class GroupSlot(tune.Trainable):
    """Several workers: this actor passes jobs to a group of Ray Train workers and passes their reports on.

    Subclassed by `group_slot` with the resources of the study.
    """

    resources: Resources
    storage: str
    start_attempts: int

    def setup(self, config: dict[str, Any]) -> None:
        """Start the worker group and hand it the first run."""
        # Beside this actor: without it the mailbox is of no use, and it shall not die with another node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Every rank may wait in it at once, and ranks of a group that is gone beside those of the next.
        calls = 8 + 2 * self.resources.workers
        options = {"num_cpus": 0, "max_concurrency": calls, "scheduling_strategy": here}
        self._mailbox = ray.remote(Mailbox).options(**options).remote()
        self._hand_over(config)
        self._start_group()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Hand the same group the next run."""
        self._halt()
        self._hand_over(new_config)
        if not self._group.is_alive():  # it did not survive the run before
            self._start_group()
        return True

    def step(self) -> Report:
        """The next epoch's report. An error of `fit` fails this trial at once; the group stays."""
        while True:
            alive = self._group.is_alive()  # before the question: its last words come first
            report: Report | None = ray.get(self._mailbox.take.remote(_POLL_SECONDS))
            if report is not None and (alive or not report.get("waiting")):
                return report
            if not alive:
                raise self._error or RuntimeError("the worker group ended")

    def cleanup(self) -> None:
        """Stop the job, send the group home, wait for it."""
        self._halt()
        ray.get(self._mailbox.close.remote())
        self._group.join(60)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run folder has its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `fit` resumes by itself."""

    def _hand_over(self, config: dict[str, Any]) -> None:
        ray.get(self._mailbox.start.remote(dict(config)))

    def _start_group(self) -> None:
        self._error: BaseException | None = None
        self._group = threading.Thread(target=self._run_group, daemon=True)
        self._group.start()

    def _halt(self) -> None:
        # An epoch takes as long as it takes; only a group that is gone is not waited for.
        while self._group.is_alive() and not ray.get(self._mailbox.halt.remote(_POLL_SECONDS)):
            pass

    def _run_group(self) -> None:
        """In a thread that is alive as long as the group; `_error` says what ended it, if it did not go home."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from orchestrator.slots.process_group import GroupConfig, TellMailbox

        needs = {"CPU": float(self.resources.cpus_per_worker)}
        on_gpu = self.resources.gpus_per_worker > 0
        if on_gpu:
            needs["GPU"] = self.resources.gpus_per_worker
        try:
            TorchTrainer(
                worker_group,
                train_loop_config={"mailbox": self._mailbox, "gpus": self.resources.gpus_per_worker},
                torch_config=GroupConfig(backend="nccl" if on_gpu else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=self.resources.workers, use_gpu=on_gpu, resources_per_worker=needs
                ),
                run_config=RunConfig(
                    name=f"slot-{self.trial_id}-{time.time_ns()}",
                    storage_path=self.storage,
                    failure_config=FailureConfig(max_failures=3, controller_failure_limit=self.start_attempts),
                    callbacks=[TellMailbox(self._mailbox)],
                ),
            ).fit()
        except BaseException as error:
            self._error = error


def group_slot(resources: Resources, storage: Path, *, start_attempts: int) -> type[GroupSlot]:
    """A GroupSlot for these resources; Ray Train keeps its own notes under `storage`.

    A group that finds no room gives up after so many minutes, with -1 never: a lost node may come back any time.
    """
    attributes = {"resources": resources, "storage": str(storage), "start_attempts": start_attempts}
    return type("GroupSlot", (GroupSlot,), attributes)


def worker_group(config: dict[str, Any]) -> None:
    """What every Ray Train worker does: take a job, fit, report, take the next one."""
    import ray.train

    from trainers.ranks import Ranks
    from trainers.run_folder import TakenOver

    mailbox = config["mailbox"]
    # Workers see the GPUs of all on their node, Ray knows which is whose; where none is reserved it would name one too.
    device = ray.train.torch.get_device() if config["gpus"] else reserved_device(0)
    while True:
        ranks = Ranks.current(device)
        job = ranks.broadcast(ray.get(mailbox.next_job.remote()) if ranks.is_first else None)
        if job is None:
            return
        try:
            _fit(job, ranks, mailbox)
            outcome: Report = {"done": True}
        except (RayError, TakenOver):
            raise  # the mailbox is gone, or belongs to the group that has taken this one's place: nobody to tell
        except Exception as error:
            outcome = _failed(job, error, ranks, mailbox)
        if ranks.is_first:
            ray.get(mailbox.finish.remote(outcome))


def _fit(job: Job, ranks: Ranks, mailbox: Any) -> None:
    """Every epoch of a job, reported by rank 0, until its last one or until all ranks hear that it stops."""
    ranks.on_first(partial(note_placement_group, Path(job["run_dir"])))
    for record in run_job(job, ranks.device):
        report = report_of(record, int(job["experiment"]["epochs"]))
        if ranks.broadcast(ray.get(mailbox.report.remote(report)) if ranks.is_first else False):
            return


def _failed(job: Job, error: Exception, ranks: Ranks, mailbox: Any) -> Report:
    """The last report of a job in which all ranks have met an error. Where this one is alone, it says so and raises."""
    shared = ray.get(mailbox.met.remote(ranks.rank, ranks.world_size, patience(error)))
    if shared:
        ranks.barrier()  # raises if they can't hear each other: then it is not the run's own
    # Had a rank died, Train would have started the group again by now, which finds its job in the mailbox.
    outcome = failure_of(Path(job["run_dir"]), error)
    if not shared:
        # The others live, and wait in a collective for this rank: only a new group goes on.
        ray.get(mailbox.finish.remote(outcome))
        raise error
    return outcome


def patience(error: Exception) -> float:
    """How long to wait for the other ranks to meet an error, before it is this rank's alone.

    A rank that has died shows in collectives, as a RuntimeError.
    """
    import torch

    from trainers.totals import Diverged

    own = not isinstance(error, RuntimeError) or isinstance(error, (torch.OutOfMemoryError, Diverged))
    return _PATIENCE_SECONDS if own else _PATIENCE_IF_A_RANK_MAY_HAVE_DIED
