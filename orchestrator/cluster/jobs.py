"""Studies as jobs of a cluster, through Ray Jobs: the driver runs on the head node, who submitted it may leave.

The package is installed on the nodes. What travels with a job is the study, complete, and the methods that other
packages have added here: their modules, with the entry points by which every process of the study finds them.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.cluster.connection import prepare
from orchestrator.cluster.joining import JOB_VARIABLE, check_dashboard_answers, wrong_token
from orchestrator.exit_codes import ENVIRONMENT, INTERRUPTED, OK
from orchestrator.records.study_folder import STUDY_FILE
from search_spaces.study import Study
from trainers.catalog.extensions import GROUP
from trainers.problems import InvalidInput, unknown_name
from trainers.whole_files import write_whole

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"  # Ray's own command line reads it too
_LONGEST_EPOCH_SECONDS = 3600  # a driver that is asked to stop may take so long to end the epoch; then it is killed
# What a job of ours carries; others may have a "study" too.
_STUDY, _STORAGE, _PYTHON = "orchestrator.study", "orchestrator.storage", "orchestrator.python"
_METADATA = {_STUDY, _STORAGE, _PYTHON}
# They would report every upload; those below `ray` set a level of their own when they are imported.
_LOUD = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_OVER = ("succeeded", "failed", "stopped")


@dataclass(frozen=True)
class Place:
    """Where the driver of a study works: the folder of the study folders, and its Python. Both are the cluster's."""

    storage: str
    python: str

    def entrypoint(self, *words: str) -> str:
        """The shell command of a driver. What it writes without being told where lands beside the study folders.

        The shell gives way to the driver, or a request to stop would end the shell and leave the driver.
        """
        storage, python = shlex.quote(self.storage), shlex.quote(self.python)
        return f"mkdir -p {storage} && cd {storage} && exec {python} -m orchestrator.cli {' '.join(words)}"


@dataclass(frozen=True)
class StudyJob:
    """One driver of a study on a cluster. `exit_code` is its own; None unless it has ended by itself."""

    name: str
    study: str
    place: Place
    state: str
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        """Whether the driver has ended."""
        return self.state in _OVER

    @property
    def folder(self) -> str:
        """The folder of the study, on the nodes."""
        return f"{self.place.storage}/{self.study}"

    @property
    def outcome(self) -> int:
        """The exit code for whoever waited for its end; a driver that was lost has none of its own."""
        if self.state == "succeeded":
            return OK
        return INTERRUPTED if self.state == "stopped" else self.exit_code or ENVIRONMENT


class Jobs:
    """The jobs of one cluster that are studies of ours."""

    def __init__(self, address: str | None) -> None:
        """Raises what `check_dashboard_answers` does."""
        chosen = address or os.environ.get(ADDRESS_VARIABLE)
        if not chosen:
            raise InvalidInput.single("--address", f"is missing: http://HEAD:8265, here or in {ADDRESS_VARIABLE}")
        check_dashboard_answers(chosen, "--address" if address else ADDRESS_VARIABLE)
        prepare(private=False)
        self._address = chosen
        with self._explained():
            from ray.job_submission import JobSubmissionClient

            self._client = JobSubmissionClient(chosen)
            for name in _LOUD:
                logging.getLogger(name).setLevel(logging.ERROR)

    def submit(self, study: Study, place: Place) -> str:
        """Start a driver that runs this study, or goes on with it. Returns the job's name."""
        with tempfile.TemporaryDirectory() as folder:
            write_whole(Path(folder) / STUDY_FILE, study.to_yaml())
            # The folder by the name that it was given: where that is a link, nodes may share the link's name alone.
            words = ("sweep", f'"$OLDPWD"/{STUDY_FILE}', "--storage", shlex.quote(place.storage))
            return self._start(study.name, place, Path(folder), *words)

    def resume(self, name: str) -> str:
        """Start another driver for the study of a job that has ended. Returns the new job's name."""
        job = self.find(name)
        with tempfile.TemporaryDirectory() as folder:
            return self._start(job.study, job.place, Path(folder), "resume", shlex.quote(job.folder))

    def latest(self, name: str) -> StudyJob:
        """The newest job of the study that a job is of, in the same folder: how far the study got is what it says."""
        job = self.find(name)
        return [other for other in self.all() if other.folder == job.folder][-1]

    def all(self) -> list[StudyJob]:
        """Every job that the cluster remembers, oldest first."""
        with self._explained():
            known = self._client.list_jobs()
        known.sort(key=lambda details: details.start_time or 0)
        return [_job(details) for details in known if set(details.metadata or {}) >= _METADATA]

    def find(self, name: str) -> StudyJob:
        """One of them. Raises InvalidInput if there is none of that name."""
        jobs = {job.name: job for job in self.all()}
        if not jobs:
            raise InvalidInput.single(
                name, "unknown job: the cluster remembers none that was submitted with this package"
            )
        if name not in jobs:
            raise InvalidInput.single(name, unknown_name(name, jobs, "job"))
        return jobs[name]

    def stop(self, name: str) -> bool:
        """Ask a driver to finish its epoch and to end. Returns whether it was running."""
        with self._explained():
            return bool(self._client.stop_job(self.find(name).name))

    def logs(self, name: str) -> str:
        """What a driver has said so far."""
        with self._explained():
            return str(self._client.get_job_logs(self.find(name).name))

    async def follow(self, name: str) -> AsyncIterator[str]:
        """What a driver has said, and what it says until it ends."""
        with self._explained():
            async for text in self._client.tail_job_logs(self.find(name).name):
                yield text

    def _start(self, study: str, place: Place, folder: Path, *words: str) -> str:
        jobs = self.all()
        for job in jobs:
            if job.study == study and job.place.storage == place.storage and not job.is_over:
                raise InvalidInput.single(
                    study,
                    f"is being run by job {job.name}; let it end, or stop it (orchestrator job stop {job.name}) and "
                    f"wait for its epoch (orchestrator job logs {job.name} --follow)",
                )
        for point in entry_points(group=GROUP):
            _pack(point, folder)
        numbers = [int(number) for job in jobs for name, _, number in [job.name.rpartition("-")] if name == study]
        job_name = f"{study}-{max(numbers, default=0) + 1}"
        with self._explained():
            return str(
                self._client.submit_job(
                    entrypoint=place.entrypoint(*words),
                    submission_id=job_name,
                    metadata={_STUDY: study, _STORAGE: place.storage, _PYTHON: place.python},
                    runtime_env={
                        "working_dir": str(folder),
                        "env_vars": {
                            "RAY_JOB_STOP_WAIT_TIME_S": str(_LONGEST_EPOCH_SECONDS),
                            JOB_VARIABLE: job_name,
                        },
                    },
                )
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise ConnectionError(wrong_token(self._address)) from error
        except ConnectionError as error:
            raise ConnectionError(f"no Ray dashboard answers at {self._address}") from error


def _job(details: Any) -> StudyJob:
    place = Place(details.metadata[_STORAGE], details.metadata[_PYTHON])
    state = str(details.status).lower()
    return StudyJob(details.submission_id, details.metadata[_STUDY], place, state, details.driver_exit_code)


def _pack(point: EntryPoint, folder: Path) -> None:
    """Copy the package or module of an entry point, with what makes it an installed one."""
    top = point.module.partition(".")[0]
    spec = find_spec(top)
    assert spec is not None  # it was loaded when this process started
    if spec.submodule_search_locations:
        for location in spec.submodule_search_locations:
            shutil.copytree(location, folder / top, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(str(spec.origin), folder)
    assert point.dist is not None
    metadata = folder / f"{point.dist.name.replace('-', '_')}-{point.dist.version}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {point.dist.name}\nVersion: {point.dist.version}\n"
    )
    with open(metadata / "entry_points.txt", "a") as file:
        file.write(f"[{GROUP}]\n{point.name} = {point.value}\n")
