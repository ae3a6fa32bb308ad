"""What has happened in a study: JSON lines in its folder, written by the driver, and the runs that they come to."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from orchestrator.records.events import (
    Confirming,
    Ended,
    Evaluated,
    Event,
    Issued,
    Proposed,
    Stopped,
    from_line,
    to_line,
)
from orchestrator.records.runs import Run, begun, changed, confirmation_key, of_seed, trial_key
from trainers.config import Experiment
from trainers.evaluation.result import EvaluationResult
from trainers.origin import Origin
from trainers.problems import InvalidInput
from trainers.records import Follower, RecordsFollower, append_line

JOURNAL_FILE, EVALUATION_FILE = "journal.jsonl", "evaluation.json"
_Version = tuple[int, int, int]


class Journal:
    """The journal of a study, in its folder. What was read once is remembered: reading again costs what is new."""

    def __init__(self, folder: Path) -> None:
        # The parent of `..` is found on disk, not in the text; a link to shared storage stays what all nodes call it.
        self.folder = folder.resolve() if ".." in folder.parts else folder.absolute()
        self._reading = threading.Lock()  # tracking reads in a thread of its own
        self._follower = Follower(self.folder / JOURNAL_FILE)
        self._events: list[Event] = []
        self._runs: dict[str, Run] = {}
        self._records: dict[Path, RecordsFollower] = {}
        self._evaluations: dict[Path, tuple[_Version, EvaluationResult]] = {}
        self._alike: dict[str, set[str]] = {}  # keys of the runs of trials, by the digest of their experiment
        self._stopping: dict[str, Stopped] = {}  # the decision on a twin comes before it is issued
        self._told: dict[str, float] = {}  # when a run was last spoken of
        self._settled: set[str] = set()  # runs whose files are not looked at until they are spoken of again

    def append(self, event: Event) -> None:
        """Write one event, durably."""
        append_line(self.folder / JOURNAL_FILE, to_line(event))

    def events(self) -> list[Event]:
        """All events, oldest first."""
        with self._reading:
            self._catch_up()
            return list(self._events)

    def trial_folder(self, number: int, seed: int = 0) -> Path:
        """Where a run of a trial lives, by its Optuna number and the place of its seed."""
        return self.folder / "trials" / of_seed(f"{number:04d}", seed)

    def confirmation_folder(self, trial: int, seed: int) -> Path:
        """Where a trial is trained again with another seed."""
        return self.folder / "confirm" / confirmation_key(trial, seed)

    def twin(self, number: int, experiment: Experiment) -> Run | None:
        """The run of an earlier trial that is the same as this run of trial `number` and has ended.

        Complete, or stopped under the same thresholds.
        """
        runs, alike = self.runs(), self._alike.get(experiment.digest(), set())
        for run in runs:
            ended = run.state == "complete" or (
                run.state == "stopped" and run.experiment.evaluation == experiment.evaluation
            )
            if run.key in alike and run.trial < number and ended:
                return run
        return None

    def propose(
        self,
        number: int,
        values: Mapping[str, Any],
        experiment: Experiment,
        *,
        folder: Path,
        seed: int = 0,
        seeds: int = 1,
        origin: Origin | None = None,
    ) -> None:
        """Record that a run of a trial was issued; its folder is another's if that one is its twin."""
        self.append(
            Proposed(
                key=trial_key(number, seed),
                kind="repeat" if seed else "trial",
                trial=number,
                seeds=seeds,
                values=dict(values),
                experiment=experiment.to_dict(),
                folder=str(folder.relative_to(self.folder)),
                origin=None if origin is None else asdict(origin),
            )
        )

    def confirm(
        self, trial: int, seed: int, values: Mapping[str, Any], experiment: Experiment, origin: Origin | None = None
    ) -> None:
        """Record that a trial is trained again with another seed."""
        self.append(
            Confirming(
                key=confirmation_key(trial, seed),
                trial=trial,
                values=dict(values),
                experiment=experiment.to_dict(),
                folder=str(self.confirmation_folder(trial, seed).relative_to(self.folder)),
                origin=None if origin is None else asdict(origin),
            )
        )

    def runs(self) -> list[Run]:
        """Every run with its records and its evaluation: trials by number, their repeats, then confirmations."""
        with self._reading:
            self._catch_up()
            for key, run in self._runs.items():
                if key in self._settled:
                    continue
                records = self._records.setdefault(run.folder, RecordsFollower(run.folder)).read()
                evaluation = self._evaluation(run.folder)
                if records is not run.records or evaluation is not run.evaluation:
                    self._runs[key] = replace(run, records=records, evaluation=evaluation)
                if self._runs[key].is_settled(self._told[key]):
                    self._settled.add(key)
            return sorted(self._runs.values(), key=lambda run: run.place)

    def _catch_up(self) -> None:
        try:
            lines, anew = self._follower.read()
            if anew:
                self._forget()
            for line in lines:
                event = from_line(line)
                self._apply(event)
                self._events.append(event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            place = f"{self.folder / JOURNAL_FILE}, event {len(self._events) + 1}"
            # Whoever reads next must meet it again, and not go on without what stands there.
            self._follower = Follower(self.folder / JOURNAL_FILE)
            self._forget()
            raise InvalidInput.single(
                place, f"can't be read ({type(error).__name__}: {error}); mend that line, or restore the file"
            ) from error

    def _forget(self) -> None:
        self._events, self._runs, self._alike, self._stopping = [], {}, {}, {}

    def _apply(self, event: Event) -> None:
        if isinstance(event, Stopped):
            self._stopping[event.key] = event
        if isinstance(event, Issued):
            run = begun(event, self.folder)
            stopping = self._stopping.get(event.key)
            self._runs[event.key] = run if stopping is None else changed(run, stopping)
            if run.kind != "confirmation":
                self._alike.setdefault(run.experiment.digest(), set()).add(run.key)
        elif isinstance(event, (Stopped, Ended, Evaluated)) and event.key in self._runs:
            self._runs[event.key] = changed(self._runs[event.key], event)
        else:
            return
        self._told[event.key] = event.time
        self._settled.discard(event.key)

    def _evaluation(self, folder: Path) -> EvaluationResult | None:
        file = folder / EVALUATION_FILE
        try:
            found = file.stat()
        except FileNotFoundError:
            return None
        version = (found.st_ino, found.st_mtime_ns, found.st_size)
        if folder not in self._evaluations or self._evaluations[folder][0] != version:
            self._evaluations[folder] = version, EvaluationResult.load(file)
        return self._evaluations[folder][1]
