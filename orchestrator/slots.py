"""Where a trial runs: a slot, a reused Tune actor that takes one run after the other.

With one worker the slot runs `fit` in its own process. With several it owns one `TorchTrainer` whose worker group
outlives the trial: starting such a group costs a minute, handing it the next job costs nothing. The trial actor and the
group talk through a mailbox; a trial is stopped by the answer to its report, never by a kill. The group itself knows
nothing between two jobs: `fit` resumes from its own checkpoint.

A trial's configuration is `{"key": str, "experiment": dict, "run_dir": str, "threads": int, "gpus": float, "sharing":
Sharing}`, the last None where it leaves no prefix for others. A report is one epoch's metrics, or `{"failure": text}`:
a Python error fails its run at once, it does not look like a crash to be retried; `{"disk_full": folder}` is no fault
of the run; `{"waiting": True}` says that its worker group is not there yet.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import disk
from orchestrator.devices import reserved_device
from orchestrator.reservations import note_placement_group
from search_spaces.study import Resources
from trainers.config import parse
from trainers.records import EpochRecord

Report = dict[str, Any]
_POLL_SECONDS = 1.0
# How long the other ranks may take to meet the error that one has met. Ray notices a lost node within half a minute.
_PATIENCE_SECONDS, _PATIENCE_IF_A_RANK_MAY_HAVE_DIED = 5.0, 60.0


def report_of(record: EpochRecord, epochs: int) -> Report:
    """What Tune is told after an epoch: the metrics, when they were born, whether that was the last one."""
    return {**record.metrics, "epoch": record.epoch, "born": record.time, "done": record.epoch + 1 >= epochs}


def record_of(report: Report) -> EpochRecord | None:
    """Inverse of `report_of`; None for a report that carries no epoch."""
    if "born" not in report:
        return None
    metrics = {name: value for name, value in report.items() if "/" in name}
    return EpochRecord(report["epoch"], report["born"], metrics)


class ProcessSlot(tune.Trainable):
    """One worker: `fit` runs in this actor, one epoch a step."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first run."""
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next run in the same process."""
        self._records.close()
        self._start(new_config)
        return True

    def step(self) -> Report:
        """One epoch."""
        try:
            return report_of(next(self._records), self._epochs)
        except Exception as error:
            return failure_of(Path(self.config["run_dir"]), error)

    def cleanup(self) -> None:
        """Leave the current run where its last checkpoint is."""
        self._records.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run folder has its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `fit` resumes by itself."""

    def _start(self, config: dict[str, Any]) -> None:
        self._epochs = int(config["experiment"]["epochs"])
        self._records = run_job(config)


class Mailbox:
    """Async actor between a trial actor and its worker group. It holds the job, so a restarted group finds it."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._job: dict[str, Any] | None = None
        self._taken = False
        self._outcome: Report | None = None
        self._reports: list[Report] = []
        self._met: set[int] = set()
        self._stop = False
        self._closed = False

    async def start(self, job: dict[str, Any]) -> None:
        """Trial actor: here is the next job."""
        await self._set(_job=job, _taken=False, _outcome=None, _reports=[], _stop=False)

    async def take(self, seconds: float) -> Report | None:
        """Trial actor: the next report, the one of how the job ended after the others; None if there is none yet."""
        async with self._changed:
            if not await self._within(seconds, lambda: self._reports or self._outcome):
                return None if self._taken else {"waiting": True, "done": False}
            report = self._reports.pop(0) if self._reports else self._outcome
            self._changed.notify_all()
            return report

    async def halt(self, seconds: float) -> bool:
        """Trial actor: stop the current job. Answers "has the group?", after `seconds` at the latest."""
        await self._set(_stop=True, **({} if self._taken else {"_job": None}))
        async with self._changed:
            return await self._within(seconds, lambda: self._job is None)

    async def close(self) -> None:
        """Trial actor: there will be no more jobs."""
        await self._set(_closed=True)

    async def next_job(self) -> dict[str, Any] | None:
        """Rank 0: wait for a job; None means go home."""
        if self._stop:
            await self._set(_job=None)  # a group that was started again need not begin what is to stop
        async with self._changed:
            self._met.clear()
            await self._changed.wait_for(lambda: self._closed or self._job)
            self._taken = True
            return None if self._closed else self._job

    async def report(self, report: Report) -> bool:
        """Rank 0: one epoch is done. Answers "stop?". The group runs ahead of the driver by one epoch at most."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stop or not self._taken or not self._reports)
            if self._stop or not self._taken:
                return True
            self._reports.append(report)
            self._changed.notify_all()
            return False

    async def met(self, rank: int, of: int, seconds: float) -> bool:
        """Any rank: its job has met an error. Answers "every rank's?", after `seconds` at the latest."""
        async with self._changed:
            self._met.add(rank)
            self._changed.notify_all()
            return await self._within(seconds, lambda: len(self._met) == of)

    async def finish(self, outcome: Report) -> None:
        """Some rank: the job has ended; `outcome` is its last report, with an error if there was one."""
        if self._taken:  # else it is another job by now: two ranks met an error, and others did not
            await self._set(_job=None, _taken=False, _outcome=outcome)

    async def lost(self) -> None:
        """Train: the group is gone. Another one will take the job, if there is room for it."""
        await self._set(_taken=False)

    async def _set(self, **values: Any) -> None:
        async with self._changed:
            self.__dict__.update(values)
            self._changed.notify_all()

    async def _within(self, seconds: float, condition: Callable[[], Any]) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait_for(condition), seconds)
        except TimeoutError:
            return False
        return True


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
        self._over = True
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Hand the same group the next run."""
        self._halt()
        self._start(new_config)
        return True

    def step(self) -> Report:
        """The next epoch's report. An error of `fit` fails this trial at once; the group stays."""
        while True:
            over = self._over  # before the question: its last words come first
            report = ray.get(self._mailbox.take.remote(_POLL_SECONDS))
            if report is not None and not (over and report.get("waiting")):
                return dict(report)
            if over:
                raise self._error or RuntimeError("the worker group ended")

    def cleanup(self) -> None:
        """Stop the job, send the group home, wait for it."""
        self._halt()
        ray.get(self._mailbox.close.remote())
        self._thread.join(60)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run folder has its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `fit` resumes by itself."""

    def _start(self, config: dict[str, Any]) -> None:
        ray.get(self._mailbox.start.remote(dict(config)))
        if self._over:  # the first job, or the group did not survive the one before
            self._error: BaseException | None = None
            self._over = False
            self._thread = threading.Thread(target=self._run_group, daemon=True)
            self._thread.start()

    def _halt(self) -> None:
        # An epoch takes as long as it takes; only a group that is gone is not waited for.
        while not self._over and not ray.get(self._mailbox.halt.remote(_POLL_SECONDS)):
            pass

    def _run_group(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from orchestrator.process_group import GroupConfig, TellMailbox

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
        finally:
            self._over = True


def group_slot(resources: Resources, storage: Path, *, start_attempts: int) -> type[GroupSlot]:
    """A GroupSlot for these resources; Ray Train keeps its own notes under `storage`.

    A group that finds no room gives up after so many minutes, with -1 never: a lost node may come back any time.
    """
    attributes = {"resources": resources, "storage": str(storage), "start_attempts": start_attempts}
    return type("GroupSlot", (GroupSlot,), attributes)


def worker_group(config: dict[str, Any]) -> None:
    """What every Ray Train worker does: take a job, fit, report, take the next one."""
    import ray.train

    from trainers.loop import TakenOver
    from trainers.ranks import Ranks

    mailbox = config["mailbox"]
    # Workers see the GPUs of all on their node, Ray knows which is whose; where none is reserved it would name one too.
    device = ray.train.torch.get_device() if config["gpus"] else reserved_device(0)
    while True:
        ranks = Ranks.current(device)
        job = ranks.broadcast(ray.get(mailbox.next_job.remote()) if ranks.is_first else None)
        if job is None:
            return
        outcome: Report = {"done": True}
        try:
            ranks.on_first(partial(note_placement_group, Path(job["run_dir"])))
            for record in run_job(job, device):
                report = report_of(record, int(job["experiment"]["epochs"]))
                if ranks.broadcast(ray.get(mailbox.report.remote(report)) if ranks.is_first else False):
                    break
        except (RayError, TakenOver):
            raise  # the mailbox is gone, or belongs to the group that has taken this one's place: nobody to tell
        except Exception as error:
            shared = ray.get(mailbox.met.remote(ranks.rank, ranks.world_size, patience(error)))
            if shared:
                ranks.barrier()  # raises if they can't hear each other: then it is not the run's own
            # Had a rank died, Train would have started the group again by now, which finds its job in the mailbox.
            outcome = failure_of(Path(job["run_dir"]), error)
            if not shared:
                # The others live, and wait in a collective for this rank: only a new group goes on.
                ray.get(mailbox.finish.remote(outcome))
                raise
        if ranks.is_first:
            ray.get(mailbox.finish.remote(outcome))


def patience(error: Exception) -> float:
    """How long to wait for the other ranks to meet an error, before it is this rank's alone.

    A rank that has died shows in collectives, as a RuntimeError.
    """
    import torch

    from trainers.totals import Diverged

    own = not isinstance(error, RuntimeError) or isinstance(error, (torch.OutOfMemoryError, Diverged))
    return _PATIENCE_SECONDS if own else _PATIENCE_IF_A_RANK_MAY_HAVE_DIED


def run_job(job: dict[str, Any], device: Any = None) -> Generator[EpochRecord]:
    """`fit` for one job in this process, with a process state that does not depend on the job before."""
    import torch

    from trainers.loop import fit
    from trainers.prefix import fit_and_leave
    from trainers.ranks import Ranks

    torch.set_num_threads(int(job["threads"]))
    torch.manual_seed(0)
    experiment, run_dir = parse(job["experiment"]), Path(job["run_dir"])
    ranks = Ranks.current(device or reserved_device(job["gpus"]))
    sharing = job["sharing"]
    if sharing is None:
        yield from fit(experiment, run_dir, ranks=ranks)
    else:
        yield from fit_and_leave(experiment, run_dir, sharing, job["key"], ranks=ranks)


def failure_of(run_dir: Path, error: Exception) -> Report:
    """The last report of a run that ends with an error."""
    if disk.is_full(error):
        return {"disk_full": str(run_dir), "done": True}
    return {"failure": keep_traceback(run_dir, error), "done": True}


def keep_traceback(run_dir: Path, error: Exception, name: str = "error.txt") -> str:
    """Write the traceback into the run folder; returns one line about it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = run_dir / name
    file.write_text("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error} (traceback: {file})"
