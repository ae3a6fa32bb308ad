"""Jobs, as far as they can be tried without a cluster."""

from __future__ import annotations

import logging

import pytest

from orchestrator.jobs import Jobs


def test_ray_does_not_report_what_it_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.jobs.check_dashboard_answers", lambda *_: None)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda _address: object())
    Jobs("http://127.0.0.1:9")
    for module in ("dashboard_sdk", "job.sdk"):
        assert not logging.getLogger(f"ray.dashboard.modules.{module}").isEnabledFor(logging.INFO)
