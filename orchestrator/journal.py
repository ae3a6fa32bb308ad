"""The study's own memory: JSON lines in its folder, written by the driver; tracking, reports and resuming read it.

runs/NAME/
  study.yaml            the study as it was started
  study.json            its identity
  journal.jsonl         one event a line: proposed, compared, stopping, ended, confirming, interrupted, …
  optuna.db             what the sampler knows
  trials/0003/          a run folder of `trainers.fit`: experiment.yaml, records.jsonl, checkpoints/
  confirm/0003-seed1/   likewise, with evaluation.json and the shards behind it
  figures/, report.html
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search_spaces.loader import read_yaml
from search_spaces.study import Study, parse_study
from trainers.config import Experiment, parse
from trainers.evaluation.result import Evaluation
from trainers.problems import InvalidInput
from trainers.records import EpochRecord, Follower, RecordsFollower, append_line

STUDY_FILE, IDENTITY_FILE, JOURNAL_FILE = "study.yaml", "study.json", "journal.jsonl"
EVALUATION_FILE = "evaluation.json"
_Version = tuple[int, int, int]


@dataclass(frozen=True)
class Run:
    """One training run of a study: a trial, or a confirmation of one with another seed.

    `state` is running, complete, stopped (by the rule `stopped_by`) or failed; `values` is its point of the space, by
    path. Objectives are those of a complete run, or of a stopped one whose best epoch counts.
    """

    key: str
    kind: str
    trial: int
    values: Mapping[str, Any]
    experiment: Experiment
    folder: Path
    state: str = "running"
    reason: str = ""
    objectives: tuple[float, ...] = ()
    stopped_by: str = ""
    records: tuple[EpochRecord, ...] = field(default=(), repr=False)
    evaluation: Evaluation | None = field(default=None, repr=False)


class Journal:
    """The folder of one study. What was read once is remembered: reading again costs what is new on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._reading = threading.Lock()  # tracking reads in a thread of its own
        self._follower = Follower(self.folder / JOURNAL_FILE)
        self._events: list[dict[str, Any]] = []
        self._runs: dict[str, Run] = {}
        self._records: dict[Path, RecordsFollower] = {}
        self._evaluations: dict[Path, tuple[_Version, Evaluation]] = {}

    @classmethod
    def create(cls, folder: Path, study: Study) -> Journal:
        """Claim a folder for a study, or re-open it. Raises InvalidInput if it holds a different one."""
        journal = cls(folder)
        text = study.to_yaml()
        if (journal.folder / STUDY_FILE).exists():
            different = _differences(journal.study(), study)
            if different:
                raise InvalidInput.single(
                    different, f"differs from the study in {folder}; use another name, or resume that one unchanged"
                )
            return journal
        journal.folder.mkdir(parents=True, exist_ok=True)
        identity = {"id": uuid.uuid4().hex, "created": time.time()}
        (journal.folder / IDENTITY_FILE).write_text(json.dumps(identity) + "\n")
        staging = journal.folder / f".{STUDY_FILE}"
        staging.write_text(text)
        staging.replace(journal.folder / STUDY_FILE)
        return journal

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Open an existing study folder. Raises InvalidInput if it is none."""
        journal = cls(folder)
        if not (journal.folder / STUDY_FILE).exists():
            raise InvalidInput.single(str(folder), f"is not a study folder (no {STUDY_FILE})")
        return journal

    def study(self) -> Study:
        """The study as it was started."""
        return parse_study(read_yaml(self.folder / STUDY_FILE))

    @property
    def identity(self) -> str:
        """A unique id: tracking finds its own runs by it."""
        return str(json.loads((self.folder / IDENTITY_FILE).read_text())["id"])

    @property
    def storage_url(self) -> str:
        """Optuna's storage."""
        return f"sqlite:///{self.folder / 'optuna.db'}"

    def append(self, event: str, **content: Any) -> None:
        """Write one event, durably."""
        append_line(self.folder / JOURNAL_FILE, json.dumps({"event": event, "time": time.time(), **content}))

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        with self._reading:
            self._catch_up()
            return list(self._events)

    def trial_folder(self, number: int) -> Path:
        """Where a trial lives, by its Optuna number."""
        return self.folder / "trials" / f"{number:04d}"

    def propose(self, number: int, values: Mapping[str, Any], experiment: Experiment) -> Path:
        """Record that a trial was issued; returns its folder. A run that is complete already is not trained again."""
        twins = [
            run
            for run in self.runs()
            if run.state == "complete" and run.experiment.digest() == experiment.digest() and run.trial < number
        ]
        folder = twins[0].folder if twins else self.trial_folder(number)
        where = str(folder.relative_to(self.folder))
        self.append("proposed", trial=number, values=dict(values), experiment=experiment.to_dict(), folder=where)
        return folder

    def confirm(self, trial: int, seed: int, values: Mapping[str, Any], experiment: Experiment) -> Path:
        """Record that a trial is trained again with another seed; returns the folder."""
        key = confirmation_key(trial, seed)
        where = f"confirm/{key}"
        content = experiment.to_dict()
        self.append("confirming", key=key, trial=trial, values=dict(values), experiment=content, folder=where)
        return self.folder / where

    def ended(self, key: str, state: str, reason: str, objectives: list[float] | None = None) -> None:
        """Record how a run ended."""
        self.append("ended", key=key, state=state, reason=reason, objectives=objectives or [])

    def runs(self) -> list[Run]:
        """Every run with its records and its evaluation: trials by number, then confirmations."""
        with self._reading:
            self._catch_up()
            for key, run in self._runs.items():
                records = self._records.setdefault(run.folder, RecordsFollower(run.folder)).read()
                evaluation = self._evaluation(run.folder)
                if records is not run.records or evaluation is not run.evaluation:
                    self._runs[key] = replace(run, records=records, evaluation=evaluation)
            return sorted(self._runs.values(), key=lambda run: (run.kind != "trial", run.key))

    def _catch_up(self) -> None:
        lines, anew = self._follower.read()
        if anew:
            self._events, self._runs = [], {}
        for line in lines:
            event = json.loads(line)
            self._events.append(event)
            self._apply(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        if event["event"] in ("proposed", "confirming"):
            is_trial = event["event"] == "proposed"
            key = trial_key(event["trial"]) if is_trial else event["key"]
            kind = "trial" if is_trial else "confirmation"
            experiment = parse(event["experiment"])
            self._runs[key] = Run(key, kind, event["trial"], event["values"], experiment, self.folder / event["folder"])
        elif event.get("key") not in self._runs:
            return
        elif event["event"] == "stopping":
            self._runs[event["key"]] = replace(self._runs[event["key"]], stopped_by=event["rule"])
        elif event["event"] == "ended":
            self._runs[event["key"]] = replace(
                self._runs[event["key"]],
                state=event["state"],
                reason=event["reason"],
                objectives=tuple(event["objectives"]),
            )

    def _evaluation(self, folder: Path) -> Evaluation | None:
        file = folder / EVALUATION_FILE
        try:
            found = file.stat()
        except FileNotFoundError:
            return None
        version = (found.st_ino, found.st_mtime_ns, found.st_size)
        if folder not in self._evaluations or self._evaluations[folder][0] != version:
            self._evaluations[folder] = version, Evaluation.load(file)
        return self._evaluations[folder][1]


def trial_key(number: int) -> str:
    """`trial-0003`."""
    return f"trial-{number:04d}"


def trial_number(key: str) -> int:
    """Inverse of `trial_key`."""
    return int(key.removeprefix("trial-"))


def confirmation_key(trial: int, seed: int) -> str:
    """`0003-seed1`."""
    return f"{trial:04d}-seed{seed}"


def _differences(held: Study, given: Study) -> str | None:
    """The first section that may not change between a start and a resume, or None."""
    for section in ("name", "experiment", "space", "search", "confirm"):
        old, new = getattr(held, section), getattr(given, section)
        if section == "search":
            # More trials, or fewer, is no contradiction: the total is counted anew.
            old, new = (part.model_copy(update={"trials": 1}) for part in (old, new))
        if old != new:
            return section
    return None
