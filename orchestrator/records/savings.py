"""What was not computed: epochs after a stop, at what an epoch of the same run cost, and what another run had."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from orchestrator.records.runs import Run
from search_spaces.study import Resources, Study

_ORIGINS = {
    "prefix": "Begun from a shared prefix",
    "twin": "Not trained twice",
    "study": "Taken over from other studies",
}


@dataclass(frozen=True)
class Saving:
    """What was saved in one way. `seconds` are those of GPUs or CPUs, `of_epochs` what all such runs have in all."""

    how: str
    runs: int
    epochs: int
    of_epochs: int
    seconds: float
    processor: str

    def __str__(self) -> str:
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        return (
            f"{self.how}: {runs}; {self.epochs} of {self.of_epochs} epochs and "
            f"{self.seconds:.0f} {self.processor}-seconds saved"
        )


def epochs_saved(run: Run) -> int:
    """Epochs that a stopped run did not run."""
    return run.experiment.epochs - len(run.records) if run.state == "stopped" else 0


def seconds_saved(run: Run, resources: Resources) -> float:
    """The same in GPU-seconds, or in CPU-seconds where there is no GPU, by the median of the run's own epochs."""
    seconds = [record.metrics["epoch/seconds"] for record in run.records]
    return epochs_saved(run) * median(seconds) * _processors(resources) if seconds else 0.0


def savings(runs: Iterable[Run], study: Study) -> list[Saving]:
    """One a rule that stopped any run of a trial, and one a kind of origin that any run has."""
    everything = list(runs)
    tried = [run for run in everything if run.kind != "confirmation"]
    stopped = [run for run in tried if run.state == "stopped" and (run.origin is None or run.origin.kind != "twin")]

    def saving(
        how: str,
        group: list[Run],
        among: list[Run],
        epochs: Callable[[Run], int],
        seconds: Callable[[Run, Resources], float],
    ) -> Saving:
        return Saving(
            how,
            len(group),
            sum(map(epochs, group)),
            sum(run.experiment.epochs for run in among),
            sum(seconds(run, _resources(run, study)) for run in group),
            "GPU" if study.resources.gpus_per_worker else "CPU",
        )

    by_rule = [
        saving(
            f"Stopped early by {rule}",
            [run for run in stopped if run.stopped_by == rule],
            tried,
            epochs_saved,
            seconds_saved,
        )
        for rule in sorted({run.stopped_by for run in stopped})
    ]
    by_origin = [
        saving(how, group, everything, _epochs_taken_over, _seconds_taken_over)
        for kind, how in _ORIGINS.items()
        if (group := [run for run in everything if run.origin is not None and run.origin.kind == kind])
    ]
    return by_rule + by_origin


def _epochs_taken_over(run: Run) -> int:
    return len(run.records) - len(run.own_records)


def _seconds_taken_over(run: Run, resources: Resources) -> float:
    taken = run.records[: _epochs_taken_over(run)]
    return sum(record.metrics["epoch/seconds"] for record in taken) * _processors(resources)


def _resources(run: Run, study: Study) -> Resources:
    return study.confirm_resources if run.kind == "confirmation" else study.resources


def _processors(resources: Resources) -> float:
    return resources.workers * (resources.gpus_per_worker or resources.cpus_per_worker)
