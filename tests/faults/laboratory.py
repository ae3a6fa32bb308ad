"""A study in the hands of someone who breaks things: its drivers one after the other, and what they lost."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.records.journal import Journal
from search_spaces.study import Study, parse_study
from tests.faults.processes import descendants, kill, wait_for_the_end_of, wait_until
from tests.integration.conftest import command, unmeasured
from trainers.records import RECORDS_FILE, EpochRecord, Follower

TRIAL_ACTOR, TRAIN_WORKER = "ray::ResourceTrainable", "ray::RayTrainWorker"


@dataclass
class Injection:
    """One fault: how many whole epochs were computed again, how many were recorded twice, when work went on."""

    fault: str
    epochs_lost: int = 0
    epochs_doubled: int = 0
    seconds_to_recovery: float = 0.0


class Laboratory:
    """One study in `folder`, its drivers one after the other, and the list of what was done to them."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder = folder
        self.study: Study = parse_study(content)
        (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        self.root = folder / "runs" / self.study.name
        self.journal = Journal(self.root)
        self.injections: list[Injection] = []
        self._driver: subprocess.Popen[bytes] | None = None
        self._drivers = 0
        self._saves: set[tuple[str, str, int]] = set()
        self._watching = threading.Event()

    # Drivers

    def start(self) -> None:
        """`orchestrator sweep` the first time, `orchestrator resume` after that."""
        words = ["resume", f"runs/{self.study.name}"] if self._drivers else ["sweep", "study.yaml"]
        self._drivers += 1
        with open(self._log, "wb") as log:
            self._driver = subprocess.Popen(
                self.command(*words), cwd=self.folder, env=self.environment(), stdout=log, stderr=log
            )

    def command(self, *words: str) -> list[str]:
        """How a driver is started: the command line of this package, on this machine."""
        return command(*words)

    def environment(self) -> dict[str, str]:
        """What it inherits."""
        return unmeasured(OMP_NUM_THREADS="1")

    def end(self) -> tuple[int, str]:
        """Wait for the driver's own end: its exit code and what it said. No process of its outlives it."""
        driver = self.driver
        left: dict[int, str] = {}

        def ended() -> bool:
            left.update(descendants(driver.pid))
            return driver.poll() is not None

        wait_until(ended, "the driver's end")
        wait_for_the_end_of(left)
        return driver.returncode, self._log.read_text()

    def interrupt_twice(self) -> None:
        """Ctrl-C, and again when the driver has heard of the first."""
        self.driver.send_signal(signal.SIGINT)
        wait_until(lambda: "Ctrl-C again" in self._log.read_text(), "an answer to Ctrl-C", unless=self._ended_early)
        self.driver.send_signal(signal.SIGINT)

    def kill_driver(self) -> None:
        """Kill the driver; what it had started must not outlive it."""
        left = descendants(self.driver.pid)
        kill(self.driver.pid)
        self.driver.wait()
        wait_for_the_end_of(left)

    def process(self, title: str) -> int:
        """The first process of the running driver with this title."""
        return self.processes(title)[0]

    def processes(self, title: str) -> list[int]:
        """All of them, as soon as there is one. Titles change with what a process does: the first look counts."""
        found: list[int] = []

        def is_there() -> bool:
            found.extend(self.running(title))
            return bool(found)

        wait_until(is_there, title, unless=self._ended_early)
        return found

    def running(self, title: str) -> list[int]:
        """All of them now."""
        return [pid for pid, line in descendants(self.driver.pid).items() if line.startswith(title)]

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        """The newest driver."""
        assert self._driver is not None
        return self._driver

    def clean_up(self) -> None:
        """End a driver that a failed test left."""
        if self._driver is not None and self._driver.poll() is None:
            self.kill_driver()

    # What is on disk

    def run_dir(self, trial: int) -> Path:
        """A trial's folder."""
        return self.journal.trial_folder(trial)

    def epochs(self, trial: int) -> int:
        """How many epochs of a trial are recorded."""
        return len(set(self._recorded(self.run_dir(trial))))

    def wait_for_epoch(self, trial: int, epoch: int) -> None:
        """Until a trial has recorded this epoch (0-based)."""
        wait_until(lambda: self.epochs(trial) > epoch, f"epoch {epoch} of trial {trial}", unless=self._ended_early)

    def checkpoints(self, trial: int) -> list[Path]:
        """Whole checkpoints of a trial by epoch, the newest last."""
        return sorted((self.run_dir(trial) / "checkpoints").glob("epoch_*"))

    # Faults

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """A block from the fault, or from the command that repairs it, to its recovery: counts what that cost."""
        injection = Injection(name)
        self.injections.append(injection)
        doubled, lost, began = self._doubled(), self._recomputed(), time.monotonic()
        yield
        injection.seconds_to_recovery = time.monotonic() - began
        injection.epochs_lost = self._recomputed() - lost
        injection.epochs_doubled = self._doubled() - doubled

    def wait_for_a_new_epoch(self, *, or_the_end: bool = False) -> None:
        """Until some trial has recorded one more epoch than now; or until the driver's own end, if that will do."""
        before = self._total_epochs()

        def is_there() -> bool:
            return self._total_epochs() > before or (or_the_end and self.driver.poll() is not None)

        wait_until(is_there, "a new epoch", unless=self._ended_early)

    def corrupt_newest_checkpoint(self, trial: int) -> None:
        """Flip bytes in the middle of its weights."""
        file = self.checkpoints(trial)[-1] / "model.safetensors"
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
        file.write_bytes(content)

    def tear(self, file: Path) -> None:
        """Leave half a line at the end, as a crash in the middle of a write does."""
        with open(file, "ab") as handle:
            handle.write(b'{"epoch": 3, "time": 17')

    # Counting

    def __enter__(self) -> Laboratory:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._watching.set()
        self.clean_up()

    def _watch(self) -> None:
        """Note every checkpoint that appears: an epoch that was computed twice was saved twice."""
        while not self._watching.wait(0.02):
            for folder in self.root.glob("trials/*/checkpoints/epoch_*"):
                try:
                    saved = (folder / "manifest.json").stat().st_mtime_ns
                except OSError:
                    continue  # an old one that was just removed
                self._saves.add((folder.parents[1].name, folder.name, saved))

    def _recomputed(self) -> int:
        counts = Counter((trial, epoch) for trial, epoch, _ in set(self._saves))
        return sum(count - 1 for count in counts.values())

    def _doubled(self) -> int:
        folders = self.root.glob("trials/*")
        return sum(count - 1 for folder in folders for count in Counter(self._recorded(folder)).values())

    def _total_epochs(self) -> int:
        return sum(len(set(self._recorded(folder))) for folder in self.root.glob("trials/*"))

    @staticmethod
    def _recorded(run_dir: Path) -> list[int]:
        """Epochs line by line as they stand in the file, doubled ones and all."""
        return [EpochRecord.from_json(line).epoch for line in Follower(run_dir / RECORDS_FILE).read()[0]]

    @property
    def _log(self) -> Path:
        return self.folder / f"driver-{self._drivers}.log"

    def _ended_early(self) -> str | None:
        return None if self.driver.poll() is None else f"the driver ended: {self._log.read_text()}"


def table(injections: list[Injection]) -> str:
    """One line a kind of fault: how often, epochs lost and doubled, mean and longest time to recovery."""
    lines = [f"{'fault':<48} {'times':>5} {'lost':>5} {'doubled':>8} {'seconds to recovery':>20}"]
    for name in dict.fromkeys(injection.fault for injection in injections):
        group = [injection for injection in injections if injection.fault == name]
        seconds = [injection.seconds_to_recovery for injection in group]
        lost, doubled = sum(i.epochs_lost for i in group), sum(i.epochs_doubled for i in group)
        spread = f"{sum(seconds) / len(seconds):.0f}" + (f" (longest {max(seconds):.0f})" if len(group) > 1 else "")
        lines.append(f"{name:<48} {len(group):>5} {lost:>5} {doubled:>8} {spread:>20}")
    return "\n".join(lines)
