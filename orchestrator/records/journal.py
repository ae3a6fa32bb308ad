"""The study's own memory: JSON lines in its folder, written by the driver; tracking, reports and resuming read it.

runs/NAME/
  study.yaml            the study as it was started last: trials, resources and tracking may change
  study.json            its identity
  journal.jsonl         one event a line: proposed, compared, stopping, ended, confirming, evaluated, interrupted, …
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.records.storage import storage_url
from search_spaces.study import Study, parse_study
from trainers.config import Experiment, by_path, parse
from trainers.evaluation.result import Evaluation
from trainers.origin import Origin
from trainers.problems import InvalidInput, Problem
from trainers.records import EpochRecord, Follower, RecordsFollower, append_line
from trainers.whole_files import write_whole
from trainers.yaml_text import read_table

STUDY_FILE, IDENTITY_FILE, JOURNAL_FILE = "study.yaml", "study.json", "journal.jsonl"
EVALUATION_FILE = "evaluation.json"
_KINDS = ("trial", "repeat", "confirmation")
# More trials, or fewer, is no contradiction: the total is counted anew.
_CHANGEABLE = ("search.trials", "resources.", "tracking.", "experiment.data.download")
_Version = tuple[int, int, int]
# Workers may end an epoch after their run was stopped: so much longer than its longest one its files are looked at.
_LATE_EPOCHS, _LATE_SECONDS = 3, 60.0


@dataclass(frozen=True)
class Run:
    """One training run of a study. `kind` is trial, repeat (of a trial of several seeds, with another) or confirmation.

    `state` is running, complete, stopped (by the rule `stopped_by`; its epochs after `stopped_after` do not count) or
    failed; `values` is its point of the space, by path. Objectives are those of a complete run, or of a stopped one
    whose best epoch counts. `origin` says which of its epochs another run computed; `seeds` is how many runs its trial
    has. `over_seeds` are those runs, where this one speaks for its trial (`seeds.trials`). `not_evaluated` says why its
    last evaluation failed, if it did.
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
    stopped_after: int | None = None
    origin: Origin | None = None
    seeds: int = 1
    over_seeds: tuple[Run, ...] = field(default=(), repr=False)
    records: tuple[EpochRecord, ...] = field(default=(), repr=False)
    evaluation: Evaluation | None = field(default=None, repr=False)
    not_evaluated: str = ""

    @property
    def own_records(self) -> tuple[EpochRecord, ...]:
        """The records of the epochs that it computed itself."""
        return self.records if self.origin is None else self.records[self.origin.epochs :]


class Journal:
    """The folder of one study. What was read once is remembered: reading again costs what is new on disk."""

    def __init__(self, folder: Path) -> None:
        # The parent of `..` is found on disk, not in the text; a link to shared storage stays what all nodes call it.
        self.folder = folder.resolve() if ".." in folder.parts else folder.absolute()
        self._reading = threading.Lock()  # tracking reads in a thread of its own
        self._follower = Follower(self.folder / JOURNAL_FILE)
        self._events: list[dict[str, Any]] = []
        self._runs: dict[str, Run] = {}
        self._records: dict[Path, RecordsFollower] = {}
        self._evaluations: dict[Path, tuple[_Version, Evaluation]] = {}
        self._stopping: dict[str, Mapping[str, Any]] = {}  # the decision on a twin comes before it is issued
        self._told: dict[str, float] = {}  # when a run was last spoken of
        self._settled: set[str] = set()  # runs whose files are not looked at until they are spoken of again

    @classmethod
    def create(cls, folder: Path, study: Study) -> Journal:
        """Claim a folder for a study, or re-open it. Raises InvalidInput if it holds a different one.

        What may change from one start to the next is kept as it is now: resuming goes on with that.
        """
        journal = cls(folder)
        if (journal.folder / STUDY_FILE).exists():
            held = journal.study()
            differences = _differences(held, study)
            if differences:
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

    @property
    def storage_url(self) -> str:
        """Optuna's storage."""
        return storage_url(self.study(), self.folder)

    def append(self, event: str, **content: Any) -> None:
        """Write one event, durably."""
        append_line(self.folder / JOURNAL_FILE, json.dumps({"event": event, "time": time.time(), **content}))

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        with self._reading:
            self._catch_up()
            return list(self._events)

    def trial_folder(self, number: int, seed: int = 0) -> Path:
        """Where a run of a trial lives, by its Optuna number and the place of its seed."""
        return self.folder / "trials" / _of_seed(f"{number:04d}", seed)

    def confirmation_folder(self, trial: int, seed: int) -> Path:
        """Where a trial is trained again with another seed."""
        return self.folder / "confirm" / confirmation_key(trial, seed)

    def twin(self, number: int, experiment: Experiment) -> Run | None:
        """The run of an earlier trial that is the same as this run of trial `number` and has ended.

        Complete, or stopped under the same thresholds.
        """
        for run in self.runs():
            same = run.experiment.digest() == experiment.digest()
            ended = run.state == "complete" or (
                run.state == "stopped" and run.experiment.evaluation == experiment.evaluation
            )
            if run.kind != "confirmation" and run.trial < number and same and ended:
                return run
        return None

    def propose(
        self,
        number: int,
        values: Mapping[str, Any],
        experiment: Experiment,
        *,
        seed: int = 0,
        seeds: int = 1,
        folder: Path | None = None,
        origin: Origin | None = None,
    ) -> Path:
        """Record that a run of a trial was issued; returns its folder, which is another's if that one is its twin."""
        folder = folder or self.trial_folder(number, seed)
        self.append(
            "proposed",
            key=trial_key(number, seed),
            kind="repeat" if seed else "trial",
            trial=number,
            seeds=seeds,
            values=dict(values),
            experiment=experiment.to_dict(),
            folder=str(folder.relative_to(self.folder)),
            origin=None if origin is None else asdict(origin),
        )
        return folder

    def confirm(
        self, trial: int, seed: int, values: Mapping[str, Any], experiment: Experiment, origin: Origin | None = None
    ) -> Path:
        """Record that a trial is trained again with another seed; returns the folder."""
        key = confirmation_key(trial, seed)
        self.append(
            "confirming",
            key=key,
            trial=trial,
            values=dict(values),
            experiment=experiment.to_dict(),
            folder=str(self.confirmation_folder(trial, seed).relative_to(self.folder)),
            origin=None if origin is None else asdict(origin),
        )
        return self.confirmation_folder(trial, seed)

    def ended(self, key: str, state: str, reason: str, objectives: list[float] | None = None) -> None:
        """Record how a run ended."""
        self.append("ended", key=key, state=state, reason=reason, objectives=objectives or [])

    def evaluated(self, key: str, problem: str) -> None:
        """Record why a run could not be evaluated, or with an empty text that it has been."""
        self.append("evaluated", key=key, problem=problem)

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
                if _is_settled(self._runs[key], self._told[key]):
                    self._settled.add(key)
            return sorted(self._runs.values(), key=_place)

    def _catch_up(self) -> None:
        try:
            lines, anew = self._follower.read()
            if anew:
                self._events, self._runs, self._stopping = [], {}, {}
            for line in lines:
                event = json.loads(line)
                self._apply(event)
                self._events.append(event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            place = f"{self.folder / JOURNAL_FILE}, event {len(self._events) + 1}"
            # Whoever reads next must meet it again, and not go on without what stands there.
            self._follower = Follower(self.folder / JOURNAL_FILE)
            self._events, self._runs, self._stopping = [], {}, {}
            raise InvalidInput.single(
                place, f"can't be read ({type(error).__name__}: {error}); mend that line, or restore the file"
            ) from error

    def _apply(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "stopping":
            self._stopping[event["key"]] = _changes(event)
        if event["event"] in ("proposed", "confirming"):
            run = _begun(event, self.folder)
            run = replace(run, **self._stopping.get(run.key, {}))
            self._runs[run.key] = run
            key = run.key
        elif event.get("key") in self._runs:
            key = event["key"]
            self._runs[key] = replace(self._runs[key], **_changes(event))
        else:
            return
        self._told[key] = event["time"]
        self._settled.discard(key)

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


def _is_settled(run: Run, told: float) -> bool:
    """Whether its files are as they stay, unless an event says otherwise: a run that ended some time ago."""
    longest = max((record.metrics.get("epoch/seconds", 0.0) for record in run.records), default=0.0)
    return run.state != "running" and time.time() > told + _LATE_SECONDS + _LATE_EPOCHS * longest


def _begun(event: Mapping[str, Any], folder: Path) -> Run:
    """The run of a study in `folder` that an event says was issued, for the first time or again."""
    origin = event.get("origin")
    return Run(
        event.get("key") or trial_key(event["trial"]),  # journals of earlier versions name the trial alone
        "confirmation" if event["event"] == "confirming" else event.get("kind", "trial"),
        event["trial"],
        event["values"],
        parse(event["experiment"]),
        folder / event["folder"],
        origin=None if origin is None else Origin(**origin),
        seeds=event.get("seeds", 1),
    )


def _changes(event: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a run that an event about it changes."""
    if event["event"] == "stopping":
        return {"stopped_by": event["rule"], "stopped_after": event["epoch"]}
    if event["event"] == "evaluated":
        return {"not_evaluated": event["problem"]}
    if event["event"] == "ended":
        return {"state": event["state"], "reason": event["reason"], "objectives": tuple(event["objectives"])}
    return {}


def _place(run: Run) -> tuple[int, int, int]:
    """Where a run stands among all: keys as text would put trial 10,000 before 9,999, and seed 10 before seed 2."""
    return _KINDS.index(run.kind), run.trial, run.experiment.seed


def trial_key(number: int, seed: int = 0) -> str:
    """`trial-0003`; `trial-0003-seed1` is its run with the next seed."""
    return _of_seed(f"trial-{number:04d}", seed)


def trial_number(key: str) -> int:
    """The trial that a run with this key belongs to."""
    return int(key.split("-")[1])


def _of_seed(name: str, seed: int) -> str:
    return f"{name}-seed{seed}" if seed else name


def confirmation_key(trial: int, seed: int) -> str:
    """`0003-seed1`."""
    return f"{trial:04d}-seed{seed}"


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
