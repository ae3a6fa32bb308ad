"""Where a trial runs: a slot, a reused Tune actor that takes one run after the other. Here those of one worker."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from ray import tune

from orchestrator.host import disk
from orchestrator.host.devices import reserved_device
from orchestrator.host.tracebacks import keep_traceback
from orchestrator.slots.messages import Job, Report, report_of
from trainers.config import parse
from trainers.records import EpochRecord


class ProcessSlot(tune.Trainable):
    """One worker: `fit` runs in this actor, one epoch a step."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first run."""
        self._start(cast(Job, config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next run in the same process."""
        self._records.close()
        self._start(cast(Job, new_config))
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

    def _start(self, job: Job) -> None:
        self._epochs = int(job["experiment"]["epochs"])
        self._records = run_job(job)


def run_job(job: Job, device: Any = None) -> Generator[EpochRecord]:
    """`fit` for one job in this process, with a process state that does not depend on the job before."""
    import torch

    from trainers.loop import fit
    from trainers.prefix import fit_and_leave
    from trainers.ranks import Ranks

    torch.set_num_threads(job["threads"])
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
