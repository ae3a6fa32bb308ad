"""What early stopping saved: the epochs that were not run, at what an epoch of the same trial cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from orchestrator.journal import Run
from search_spaces.study import Resources


@dataclass(frozen=True)
class Saving:
    """What one rule saved. `seconds` are those of GPUs or CPUs, `of_epochs` what all trials would have run."""

    rule: str
    trials: int
    epochs: int
    of_epochs: int
    seconds: float
    processor: str

    def __str__(self) -> str:
        trials = "1 trial" if self.trials == 1 else f"{self.trials} trials"
        return (
            f"Stopped early by {self.rule}: {trials}; {self.epochs} of {self.of_epochs} epochs and "
            f"{self.seconds:.0f} {self.processor}-seconds saved"
        )


def epochs_saved(run: Run) -> int:
    """Epochs that a stopped run did not run."""
    return run.experiment.epochs - len(run.records) if run.state == "stopped" else 0


def seconds_saved(run: Run, resources: Resources) -> float:
    """The same in GPU-seconds, or in CPU-seconds where there is no GPU, by the median of the run's own epochs."""
    per_worker = resources.gpus_per_worker or resources.cpus_per_worker
    seconds = [record.metrics["epoch/seconds"] for record in run.records]
    return epochs_saved(run) * median(seconds) * resources.workers * per_worker if seconds else 0.0


def savings(runs: Iterable[Run], resources: Resources) -> list[Saving]:
    """One a rule that stopped any trial."""
    trials = [run for run in runs if run.kind == "trial"]
    rules = sorted({run.stopped_by for run in trials if run.state == "stopped"})
    groups = {rule: [run for run in trials if run.state == "stopped" and run.stopped_by == rule] for rule in rules}
    return [
        Saving(
            rule,
            len(group),
            sum(map(epochs_saved, group)),
            sum(run.experiment.epochs for run in trials),
            sum(seconds_saved(run, resources) for run in group),
            "GPU" if resources.gpus_per_worker else "CPU",
        )
        for rule, group in groups.items()
    ]
