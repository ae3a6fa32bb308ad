"""What one epoch tells, and the file that keeps it: one JSON line an epoch, written once, never changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True)
class EpochRecord:
    """Flat metrics of one epoch (0-based), named `split/quantity[/statistic]`, and the time of birth (Unix seconds).

    Splits: `train` is measured on training batches; `probe` on fixed training images under the method's own attack;
    `probe_reference` on the same under PGD at the training epsilon; `val` on the held-out slice under PGD at the
    evaluation epsilon. The time never changes once written: sending a record twice is then harmless.
    """

    epoch: int
    time: float
    metrics: Mapping[str, float]

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"epoch": self.epoch, "time": self.time, "metrics": dict(self.metrics)})

    @classmethod
    def from_json(cls, line: str) -> EpochRecord:
        """Inverse of `to_json`."""
        content = json.loads(line)
        return cls(int(content["epoch"]), float(content["time"]), content["metrics"])


def read_records(run_dir: Path) -> list[EpochRecord]:
    """All complete records of a run, by epoch. A line that a crash tore is not one; an epoch counts once."""
    records: dict[int, EpochRecord] = {}
    for line in read_lines(run_dir / RECORDS_FILE):
        record = EpochRecord.from_json(line)
        records.setdefault(record.epoch, record)
    return [records[epoch] for epoch in sorted(records)]


def append_record(run_dir: Path, record: EpochRecord) -> None:
    """Append durably; a torn last line is cut off first."""
    append_line(run_dir / RECORDS_FILE, record.to_json())


def read_lines(path: Path) -> list[str]:
    """Complete lines of a journal file; empty if it does not exist."""
    if not path.exists():
        return []
    complete, _, _torn = path.read_bytes().rpartition(b"\n")
    return [line for line in complete.decode().split("\n") if line]


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        content_end = file.seek(0, os.SEEK_END)
        if content_end:
            file.seek(0)
            complete = file.read().rfind(b"\n") + 1
            if complete != content_end:
                file.truncate(complete)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
