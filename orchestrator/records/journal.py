"""The study's own memory: JSON lines in its folder, written by the driver; tracking, reports and resuming read it.

runs/NAME/
  study.yaml            the study as it was started last: trials, resources and tracking may change
  study.json            its identity
  journal.jsonl         what has happened, a line each; see `events`
  optuna.db             what the sampler knows
  trials/0003/          a run folder of `trainers.fit`: experiment.yaml, records.jsonl, checkpoints/
  trials/0003-seed1/    the same trial with the next seed, in a study of several
  prefixes/             what trials have in common, trained once
  confirm/0003-seed1/   likewise, with evaluation.json and the shards behind it
  figures/, report.html
"""

from __future__ import annotations

import json
import threading
import time
import uuid
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
    State,
    Stopped,
    from_line,
    to_line,
)
from orchestrator.records.runs import Run, begun, changed, confirmation_key, of_seed, trial_key
from orchestrator.records.storage import OPTUNA_FILE
from search_spaces.study import Study, parse_study
from trainers.config import Experiment, by_path
from trainers.evaluation.result import Evaluation
from trainers.origin import Origin
from trainers.problems import InvalidInput, Problem
from trainers.records import Follower, RecordsFollower, append_line
from trainers.whole_files import write_whole
from trainers.yaml_text import read_table

STUDY_FILE, IDENTITY_FILE, JOURNAL_FILE = "study.yaml", "study.json", "journal.jsonl"
EVALUATION_FILE = "evaluation.json"
# More trials, or fewer, is no contradiction: the total is counted anew.
_CHANGEABLE = ("search.trials", "resources.", "confirm.workers", "tracking.", "experiment.data.download")
_Version = tuple[int, int, int]


class Journal:
    """The folder of one study. What was read once is remembered: reading again costs what is new on disk."""

    def __init__(self, folder: Path) -> None:
        # The parent of `..` is found on disk, not in the text; a link to shared storage stays what all nodes call it.
        self.folder = folder.resolve() if ".." in folder.parts else folder.absolute()
        self._reading = threading.Lock()  # tracking reads in a thread of its own
        self._follower = Follower(self.folder / JOURNAL_FILE)
        self._events: list[Event] = []
        self._runs: dict[str, Run] = {}
        self._records: dict[Path, RecordsFollower] = {}
        self._evaluations: dict[Path, tuple[_Version, Evaluation]] = {}
        self._alike: dict[str, set[str]] = {}  # keys of the runs of trials, by the digest of their experiment
        self._stopping: dict[str, Stopped] = {}  # the decision on a twin comes before it is issued
        self._told: dict[str, float] = {}  # when a run was last spoken of
        self._settled: set[str] = set()  # runs whose files are not looked at until they are spoken of again

    @classmethod
    def create(cls, folder: Path, study: Study) -> Journal:
        """Claim a folder for a study, or re-open it. Raises InvalidInput if it holds a different one.

        What may change from one start to the next is kept as it is now: resuming goes on with that. Everything may as
        long as the study has no trial: a mistake that its first start has met can be mended.
        """
        journal = cls(folder)
        if (journal.folder / STUDY_FILE).exists():
            held = journal.study()
            differences = _differences(held, study)
            if differences and journal._is_searched(held):
                raise InvalidInput(
                    Problem(
                        field, f"{new}, but the study in {folder} has {old}; use another name, or leave it as it is"
                    )
                    for field, old, new in differences
                )
            if held != study:
                journal._keep(study)
            return journal
        identity = {"id": uuid.uuid4().hex, "created": time.time()}
        write_whole(journal.folder / IDENTITY_FILE, json.dumps(identity) + "\n")
        journal._keep(study)
        return journal

    def _is_searched(self, study: Study) -> bool:
        """Whether there is a trial, or Optuna's study, which has the objectives that it was made with."""
        return bool(self.runs()) or study.search.storage is not None or (self.folder / OPTUNA_FILE).exists()

    def _keep(self, study: Study) -> None:
        write_whole(self.folder / STUDY_FILE, study.to_yaml())

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Open an existing study folder. Raises InvalidInput if it is none."""
        journal = cls(folder)
        if not (journal.folder / STUDY_FILE).exists():
            raise InvalidInput.single(str(folder), f"is not a study folder (no {STUDY_FILE})")
        return journal

    def study(self) -> Study:
        """The study as it was started last."""
        return parse_study(read_table(self.folder / STUDY_FILE))

    def check_defaults(self, study: Study) -> None:
        """Raise InvalidInput if this version would train a trial otherwise than it was begun: a default has changed.

        The study file says what its author wrote; the journal has every run with all that was filled in.
        """
        for run in self.runs():
            if run.kind == "confirmation":
                continue
            now = study.experiment_for(run.values).model_copy(update={"seed": run.experiment.seed})
            if now.digest() == run.experiment.digest():
                continue
            then, today = (dict(by_path(experiment.identity())) for experiment in (run.experiment, now))
            raise InvalidInput(
                Problem(
                    f"experiment.{field}",
                    f"{today.get(field)!r} is the default of this version, but {run.key} was begun with "
                    f"{then.get(field)!r}; write that into {self.folder / STUDY_FILE} to go on",
                )
                for field in then | today
                if then.get(field) != today.get(field)
            )

    @property
    def identity(self) -> str:
        """A unique id: tracking finds its own runs by it."""
        file = self.folder / IDENTITY_FILE
        try:
            return str(json.loads(file.read_text())["id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput.single(
                str(file),
                f"can't be read ({type(error).__name__}: {error}); restore it, or write "
                '{"id": "…"} with the study\'s tag orchestrator.run in MLflow',
            ) from error

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

    def ended(self, key: str, state: State, reason: str, objectives: list[float] | None = None) -> None:
        """Record how a run ended."""
        self.append(Ended(key=key, state=state, reason=reason, objectives=objectives or []))

    def evaluated(self, key: str, problem: str) -> None:
        """Record why a run could not be evaluated, or with an empty text that it has been."""
        self.append(Evaluated(key=key, problem=problem))

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


def _differences(held: Study, given: Study) -> list[tuple[str, str, str]]:
    """What may not change between a start and a resume and did: (dotted field, its value then, its value now)."""
    # Data may have moved.
    alike = (study.with_data_in(Path("/")).to_raw() for study in (held, given))
    old, new = ({field: repr(value) for field, value in by_path(raw)} for raw in alike)
    fields = [field for field in old | new if not field.startswith(_CHANGEABLE)]
    return [
        (field, old.get(field, "nothing"), new.get(field, "not given"))
        for field in fields
        if old.get(field) != new.get(field)
    ]
