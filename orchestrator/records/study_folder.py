"""The folder of a study: whose it is, and that it goes on as it was begun.

runs/NAME/
  study.yaml            the study as it was started last: trials, resources and tracking may change
  study.json            its identity
  journal.jsonl         what has happened, a line each; see `events`
  optuna.db             what the sampler knows
  lock                  held by the driver that is at work
  trials/0003/          a run folder of `trainers.fit`: experiment.yaml, records.jsonl, checkpoints/
  trials/0003-seed1/    the same trial with the next seed, in a study of several
  prefixes/             what trials have in common, trained once
  confirm/0003-seed1/   likewise, with evaluation.json and the shards behind it
  ray/                  notes of Ray Tune and Train, which nothing of ours reads
  figures/, report.html
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

from orchestrator.records.journal import Journal
from orchestrator.records.storage import OPTUNA_FILE
from search_spaces.study import Study, parse_study
from trainers.config import by_path
from trainers.problems import InvalidInput, Problem
from trainers.whole_files import write_whole
from trainers.yaml_text import read_table

STUDY_FILE, IDENTITY_FILE = "study.yaml", "study.json"
# More trials, or fewer, is no contradiction: the total is counted anew.
_CHANGEABLE = ("search.trials", "resources.", "confirm.workers", "tracking.", "experiment.data.download")


def create_study_folder(folder: Path, study: Study) -> Journal:
    """Claim a folder for a study, or re-open it. Raises InvalidInput if it holds a different one.

    What may change from one start to the next is kept as it is now: resuming goes on with that. Everything may as
    long as the study has no trial: a mistake that its first start has met can be mended.
    """
    journal = Journal(folder)
    if (journal.folder / STUDY_FILE).exists():
        held = read_study(journal.folder)
        differences = _differences(held, study)
        if differences and _is_searched(held, journal):
            raise InvalidInput(
                Problem(field, f"{new}, but the study in {folder} has {old}; use another name, or leave it as it is")
                for field, old, new in differences
            )
        if held != study:
            _keep(study, journal.folder)
        return journal
    identity = {"id": uuid.uuid4().hex, "created": time.time()}
    write_whole(journal.folder / IDENTITY_FILE, json.dumps(identity) + "\n")
    _keep(study, journal.folder)
    return journal


def open_study_folder(folder: Path) -> Journal:
    """The journal of an existing study folder. Raises InvalidInput if it is none."""
    journal = Journal(folder)
    if not (journal.folder / STUDY_FILE).exists():
        raise InvalidInput.single(str(folder), f"is not a study folder (no {STUDY_FILE})")
    return journal


def read_study(folder: Path) -> Study:
    """The study as it was started last."""
    return parse_study(read_table(folder / STUDY_FILE))


def read_identity(folder: Path) -> str:
    """A unique id: tracking finds its own runs by it. Raises InvalidInput if it can't be read."""
    file = folder / IDENTITY_FILE
    try:
        return str(json.loads(file.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput.single(
            str(file),
            f"can't be read ({type(error).__name__}: {error}); restore it, or write "
            '{"id": "…"} with the study\'s tag orchestrator.run in MLflow',
        ) from error


def check_defaults(study: Study, journal: Journal) -> None:
    """Raise InvalidInput if this version would train a trial otherwise than it was begun: a default has changed.

    The study file says what its author wrote; the journal has every run with all that was filled in.
    """
    for run in journal.runs():
        if run.kind == "confirmation":
            continue
        now = study.experiment_for(run.values).with_seed(run.experiment.seed)
        if now.digest() == run.experiment.digest():
            continue
        then, today = (dict(by_path(experiment.identity())) for experiment in (run.experiment, now))
        raise InvalidInput(
            Problem(
                f"experiment.{field}",
                f"{today.get(field)!r} is the default of this version, but {run.key} was begun with "
                f"{then.get(field)!r}; write that into {journal.folder / STUDY_FILE} to go on",
            )
            for field in then | today
            if then.get(field) != today.get(field)
        )


def _is_searched(study: Study, journal: Journal) -> bool:
    """Whether there is a trial, or Optuna's study, which has the objectives that it was made with."""
    return bool(journal.runs()) or study.search.storage is not None or (journal.folder / OPTUNA_FILE).exists()


def _keep(study: Study, folder: Path) -> None:
    write_whole(folder / STUDY_FILE, study.to_yaml())


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
