"""What one epoch tells, and the file that keeps it: one JSON line an epoch, written once, never changed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainers.problems import InvalidInput

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
        # All records of all runs share their names: those of hundreds of metrics are two thirds of a record.
        metrics = {sys.intern(name): value for name, value in content["metrics"].items()}
        return cls(int(content["epoch"]), float(content["time"]), metrics)


class Follower:
    """Reads an append-only file of lines piece by piece: every call reads only what is new.

    A last line without its newline is torn, or still being written: it waits until it is whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._offset = 0

    def read(self) -> tuple[list[str], bool]:
        """(Whole lines that are new, whether they start anew because the file shrank, was replaced or removed)."""
        try:
            with open(self._path, "rb") as file:
                found = os.fstat(file.fileno())
                same = found.st_ino == self._file and found.st_size >= self._offset
                anew = not same and self._start_again(found.st_ino)
                file.seek(self._offset)
                # Up to the size that was looked at: nothing is read if nothing was appended.
                whole, newline, _torn = file.read(found.st_size - self._offset).rpartition(b"\n")
        except FileNotFoundError:
            return [], self._start_again(None)
        self._offset += len(whole) + len(newline)
        return [line for line in whole.decode().split("\n") if line], anew

    def _start_again(self, file: int | None) -> bool:
        forgets = self._offset > 0
        self._file, self._offset = file, 0
        return forgets


class RecordsFollower:
    """The complete records of a run, kept up to date by reading only what is new."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / RECORDS_FILE
        self._follower = Follower(self._path)
        self._records: dict[int, EpochRecord] = {}
        self._sorted: tuple[EpochRecord, ...] = ()

    def read(self) -> tuple[EpochRecord, ...]:
        """All records by epoch; an epoch counts once, the first stands. The same tuple as before if nothing is new.

        Raises InvalidInput for a whole line that is no record.
        """
        line = ""
        try:
            lines, anew = self._follower.read()
            if anew:
                self._records = {}
            for line in lines:
                record = EpochRecord.from_json(line)
                self._records.setdefault(record.epoch, record)
        except (ValueError, KeyError, TypeError) as error:
            self._follower, self._records, self._sorted = Follower(self._path), {}, ()  # to be met again by the next
            shown = f": {line[:60]!r}" if line else ""
            raise InvalidInput.single(
                str(self._path),
                f"has a line that is no record ({type(error).__name__}: {error}){shown}; mend it, restore the file, or "
                "remove the line: curves miss its epoch then",
            ) from error
        if lines or anew:
            self._sorted = tuple(self._records[epoch] for epoch in sorted(self._records))
        return self._sorted


def read_records(run_dir: Path) -> list[EpochRecord]:
    """All complete records of a run, by epoch. A line that a crash tore is not one; an epoch counts once."""
    return list(RecordsFollower(run_dir).read())


def append_record(run_dir: Path, *records: EpochRecord) -> None:
    """Append durably; a torn last line is cut off first."""
    append_line(run_dir / RECORDS_FILE, *(record.to_json() for record in records))


def append_line(path: Path, *lines: str) -> None:
    """Append and wait until it is on disk. Reads no more of the file than its torn end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        whole = _end_of_last_line(file, end)
        if whole != end:
            file.truncate(whole)
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _end_of_last_line(file: BinaryIO, end: int) -> int:
    """Where the last newline before `end` ends, or 0; the file is searched backwards."""
    length = 1
    while end:
        start = max(end - length, 0)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end, length = start, 4096
    return 0
