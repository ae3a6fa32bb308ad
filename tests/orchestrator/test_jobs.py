"""Jobs, as far as they can be tried without a cluster."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.cluster.jobs import Jobs


def test_ray_does_not_report_what_it_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.jobs.check_dashboard_answers", lambda *_: None)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda _address: object())
    Jobs("http://127.0.0.1:9")
    for module in ("dashboard_sdk", "job.sdk"):
        assert not logging.getLogger(f"ray.dashboard.modules.{module}").isEnabledFor(logging.INFO)


class Remembered:
    """Ray's client of a cluster whose jobs never end."""

    def __init__(self, _address: str) -> None:
        self.jobs: list[Any] = []

    def list_jobs(self) -> list[Any]:
        return list(self.jobs)

    def submit_job(self, *, submission_id: str, metadata: dict[str, str], entrypoint: str, **_: object) -> str:
        known = {"submission_id": submission_id, "metadata": metadata, "status": "RUNNING", "entrypoint": entrypoint}
        self.jobs.append(SimpleNamespace(**known, start_time=len(self.jobs), driver_exit_code=None))
        return submission_id


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Remembered:
    client = Remembered("")
    monkeypatch.setattr("orchestrator.cluster.jobs.check_dashboard_answers", lambda *_: None)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda _address: client)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    return client


@pytest.mark.usefixtures("cluster")
def test_a_study_that_runs_is_not_submitted_again_however_its_folder_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["submit", "quickstart", "--storage", "/shared/runs/"]) == 0
    assert main(["submit", "quickstart", "--storage", "/shared/./runs"]) == 2
    said = capsys.readouterr().err
    assert "quickstart: is being run by job quickstart-1; let it end, or stop it" in said
    assert main(["submit", "quickstart", "--storage", "/other"]) == 0


def test_a_driver_calls_the_folder_what_the_nodes_call_it_also_where_that_is_a_link(
    cluster: Remembered, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "a link"
    link.symlink_to(tmp_path / "real")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@"\n')
    python.chmod(0o755)
    assert main(["submit", "quickstart", "--storage", str(link), "--python", str(python)]) == 0
    (begun,) = cluster.jobs
    cluster.jobs[0] = SimpleNamespace(**{**vars(begun), "status": "STOPPED"})
    assert main(["job", "resume", begun.submission_id]) == 0
    words = [
        subprocess.run(["sh", "-c", job.entrypoint], cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
        for job in cluster.jobs
    ]
    assert words[0] == [
        str(link), "-m", "orchestrator.cli", "sweep", f"{tmp_path}/study.yaml", "--storage", str(link),
    ]  # fmt: skip
    assert words[1] == [str(link), "-m", "orchestrator.cli", "resume", f"{link}/quickstart"]


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_jobs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "list"]) == 0
    assert capsys.readouterr().out.startswith("no jobs: ")
    assert main(["job", "status", "quickstart-1"]) == 2
    assert capsys.readouterr().err.startswith("error: quickstart-1: unknown job: the cluster remembers none")


def test_a_submission_without_a_folder_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "quickstart"]) == 2
    assert capsys.readouterr().err.startswith("error: --storage: is missing: the folder for the study folders")


def test_a_study_that_is_finished_is_told_with_its_report_and_starts_no_driver(
    cluster: Remembered, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("/shared/runs", "/other"):
        assert main(["submit", "quickstart", "--storage", folder]) == 0
    first = cluster.jobs[0]
    # An earlier job that did all it was asked for says nothing of a study that was given more trials since.
    for state, started in (("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)):
        cluster.jobs[0] = SimpleNamespace(**{**vars(first), "status": state})
        before = len(cluster.jobs)
        capsys.readouterr()
        assert main(["job", "resume", "quickstart-1"]) == 0
        said = capsys.readouterr().out
        assert len(cluster.jobs) - before == started
        del cluster.jobs[before:]
        if not started:
            assert said == (
                "quickstart is finished (job quickstart-1); its report, on the cluster: "
                "/shared/runs/quickstart/report.html\n"
            )


def test_how_far_a_study_got_is_what_its_newest_job_says(
    cluster: Remembered, capsys: pytest.CaptureFixture[str]
) -> None:
    for state in ("SUCCEEDED", "STOPPED"):
        assert main(["submit", "quickstart", "--storage", "/shared/runs"]) == 0
        cluster.jobs[-1].status = state
    assert main(["job", "resume", "quickstart-1"]) == 0
    assert "quickstart-3 is submitted" in capsys.readouterr().out
