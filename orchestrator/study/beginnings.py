"""Where a run begins: at its end if another study has finished it, at a prefix that another run left, or at nothing.

Only runs on the same kind of hardware are one. A study may go on with other resources, so each run folder says on what
its epochs were computed: one of two kinds lends nothing.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from orchestrator.records.journal import Journal
from orchestrator.records.study_folder import IDENTITY_FILE
from search_spaces.study import Resources, Study
from trainers import checkpoint
from trainers.branching import branching_epochs
from trainers.config import Experiment
from trainers.origin import Origin, drop_origin, read_origin
from trainers.prefix import Sharing, begin, take_over
from trainers.problems import InvalidInput
from trainers.run_folder import held_digest
from trainers.whole_files import write_whole

_HARDWARE_FILE = "hardware.json"


class Beginnings:
    """What the runs of one phase of a study need not compute."""

    def __init__(self, study: Study, journal: Journal, resources: Resources) -> None:
        self._study = study
        self._folder = journal.folder
        self._hardware = hardware(resources)
        self._branching = branching_epochs(study.experiments)
        self._elsewhere: dict[str, list[Path]] = {}  # run folders of other studies, by digest
        self._known: dict[Path, set[str]] = {}  # their names, by the folder that they are in

    def begin(self, experiment: Experiment, run_dir: Path) -> Origin | None:
        """Prepare the folder of a run that is about to be issued; returns where it began, if not at nothing.

        A run that has a whole checkpoint goes on from there.
        """
        begun = checkpoint.latest(run_dir) is not None
        _note_hardware(run_dir, self._hardware, begun=begun)
        if begun:
            return read_origin(run_dir)
        drop_origin(run_dir)  # of a beginning that a kill cut short
        # Extra images are known by the name of their file, and another study's may have held others.
        if self._study.search.reuse and experiment.data.extra is None:
            for found in self._finished_elsewhere(experiment.digest()):
                origin = Origin("study", str(found.relative_to(self._folder.parent)), experiment.epochs)
                if take_over(found, run_dir, experiment, origin):
                    return origin
        if self._study.search.share_prefix:
            return begin(experiment, run_dir, self._store)
        return None

    def sharing(self, experiment: Experiment, run_dir: Path) -> Sharing | None:
        """Which prefixes a run leaves for others: up to where it, or any corner of the space, begins to differ."""
        if not self._study.search.share_prefix or hardware_of(run_dir) != [self._hardware]:
            return None
        return Sharing(self._store, tuple(sorted({*self._branching, *branching_epochs([experiment])})))

    @property
    def _store(self) -> Path:
        return self._folder / "prefixes" / self._hardware

    def _finished_elsewhere(self, digest: str) -> list[Path]:
        """Run folders of other studies under the same storage with this digest; they may still be unfinished."""
        for study in self._folder.parent.iterdir():
            if study != self._folder and (study / IDENTITY_FILE).exists():
                self._look_at(study / "trials")
                self._look_at(study / "confirm")
        alike = sorted(self._elsewhere.get(digest, ()))
        return [folder for folder in alike if hardware_of(folder) == [self._hardware]]

    def _look_at(self, runs: Path) -> None:
        """Take note of the runs in a folder that came since the last look: there may be thousands, on slow storage."""
        known = self._known.setdefault(runs, set())
        with suppress(FileNotFoundError):
            for name in set(os.listdir(runs)) - known:
                # It is about to begin, or broken, which is that study's matter: the next look may see it.
                with suppress(FileNotFoundError, NotADirectoryError, InvalidInput):
                    self._elsewhere.setdefault(held_digest(runs / name), []).append(runs / name)
                    known.add(name)


def hardware_of(run_dir: Path) -> list[str]:
    """On what the epochs of a run were computed; empty where nobody noted it."""
    file = run_dir / _HARDWARE_FILE
    return list(json.loads(file.read_text())) if file.exists() else []


def _note_hardware(run_dir: Path, kind: str, *, begun: bool) -> None:
    """A run is about to go on, on this kind of hardware."""
    known = hardware_of(run_dir) or (["unknown"] if begun else [])
    if kind not in known:
        write_whole(run_dir / _HARDWARE_FILE, json.dumps([*known, kind]) + "\n")


def hardware(resources: Resources) -> str:
    """What the numbers of a run depend on beside its experiment: `2-workers-cpu`. Batch norm is each worker's own."""
    return f"{resources.workers}-workers-{'gpu' if resources.gpus_per_worker else 'cpu'}"
