"""What the driver and a slot say to each other: a job, and reports on it. They are dicts, as Ray Tune wants them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from search_spaces.study import Resources
from trainers.config import Experiment
from trainers.diagnostics.overfitting import CLEAN_ACCURACY, is_read
from trainers.records import EpochRecord

if TYPE_CHECKING:
    from trainers.prefix import Sharing


class Job(TypedDict):
    """A run as a slot takes it. `sharing` is None where it leaves no prefix for others."""

    key: str
    experiment: dict[str, Any]
    run_dir: str
    threads: int
    gpus: float
    sharing: Sharing | None


class Report(TypedDict, total=False):
    """What a slot says of its job, an epoch or the end of it; Tune adds fields of its own.

    `done` says that it is the last one. An epoch has its number (from 0), a few of its metrics, and when it was `born`
    (Unix seconds). `failure` is a Python error in words: it fails its run at once and does not look like a crash to be
    retried. `disk_full` is a folder, and no fault of the run. `waiting` says that the worker group is not there yet.
    `crashed` is what the driver says in place of a slot whose processes died.
    """

    done: bool
    epoch: int
    metrics: dict[str, float]
    born: float
    failure: str
    disk_full: str
    waiting: bool
    crashed: bool


def job_for(
    key: str, experiment: Experiment, folder: Path, resources: Resources, sharing: Sharing | None = None
) -> Job:
    """The job of training an experiment in a run folder."""
    return {
        "key": key,
        "experiment": experiment.to_dict(),
        "run_dir": str(folder),
        "threads": resources.cpus_per_worker,
        "gpus": resources.gpus_per_worker,
        "sharing": sharing,
    }


def report_of(record: EpochRecord, epochs: int) -> Report:
    """What is said after one of so many epochs: its record is on disk, and the driver needs little of it at once.

    Tune keeps statistics of every metric that it hears of, for every trial to the end of the study.
    """
    return {
        "epoch": record.epoch,
        "metrics": {name: value for name, value in record.metrics.items() if is_told(name)},
        "born": record.time,
        "done": record.epoch + 1 >= epochs,
    }


def is_told(metric: str) -> bool:
    """Whether a report carries this metric: those that people see while a study runs, and what onsets are found by."""
    return metric == CLEAN_ACCURACY or is_read(metric)


def record_of(report: Report) -> EpochRecord | None:
    """The epoch that a report tells of, with the metrics that it carries; None for one that carries none."""
    if "born" not in report:
        return None
    return EpochRecord(report["epoch"], report["born"], report["metrics"])
