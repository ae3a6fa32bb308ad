"""Everything that would stop a study, found before anything is started."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from orchestrator.cluster.connection import local_capacity
from orchestrator.cluster.joining import address_in_use, check_answers
from orchestrator.host import disk
from orchestrator.records.storage import check_is_ours
from orchestrator.records.study_folder import STUDY_FILE, open_study_folder, read_identity
from orchestrator.tracking import server
from search_spaces.study import Study
from trainers.config import Data
from trainers.data.availability import check_available, data_directory, is_decoded
from trainers.problems import InvalidInput, Problem


def preflight(
    study: Study, folder: Path, address: str | None, search: bool = True, *, say: Callable[[str], None]
) -> None:
    """Raise InvalidInput with everything that would stop this study in its folder, before anything is started.

    Images that nobody has decoded yet are decoded now. A study that is known already goes on without its tracking
    server: its journal keeps what the server misses. Without `search`, Optuna's database is not asked, and room for
    the confirmation is enough.
    """
    problems: list[Problem] = []

    def attempt(check: Callable[..., object], *arguments: object) -> None:
        try:
            check(*arguments)
        except InvalidInput as error:
            problems.extend(error.problems)

    attempt(_check_writable, folder.parent)
    for data in study.data:
        attempt(_check_data, data, say)
    if not (folder / STUDY_FILE).exists() and folder.parent.is_dir():  # where MLflow's file may be
        attempt(server.check_reachable, server.tracking_uri(study, folder.parent), study.tracking.experiment)
    if search and study.search.storage is not None:
        attempt(_check_database, study, folder)
    attempt(check_answers, address)
    if address_in_use(address) is None:
        attempt(partial(local_capacity().require_room, study, search=search))
    if problems:
        raise InvalidInput(dict.fromkeys(problems))
    for notice in _of_this_processor(study, address):
        say(f"note: {notice}")


def _of_this_processor(study: Study, address: str | None) -> list[str]:
    """What is worth knowing before the study computes here on CPUs."""
    precisions = {experiment.precision for experiment in study.experiments}
    if study.resources.gpus_per_worker or address_in_use(address) is not None or precisions == {"float32"}:
        return []
    import torch

    from trainers.precision import precision_notices

    cpu = torch.device("cpu")
    return [notice for precision in sorted(precisions) for notice in precision_notices(precision, cpu)]


def _check_data(data: Data, say: Callable[[str], None]) -> None:
    """Read what no trial before has: a torn file, or a subset of other images, must not cost a study its name."""
    check_available(data)
    decoded = is_decoded(data)
    if decoded and data.subset is None:
        return
    from trainers.data.images import load_splits

    if not decoded:
        say(f"reading {data.name} in {data_directory(data)} for the first time")
    load_splits(data)


def _check_database(study: Study, folder: Path) -> None:
    journal = open_study_folder(folder) if (folder / STUDY_FILE).exists() else None
    trials = set() if journal is None else {run.trial for run in journal.runs()}
    check_is_ours(study, None if journal is None else read_identity(journal.folder), trials)


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput.single("--storage", f"{str(root)!r} can't be created: {error.strerror}") from error
    if not os.access(root, os.W_OK):
        raise InvalidInput.single("--storage", f"{str(root)!r} is not writable")
    disk.check_space(root)
