"""Shards on nodes that come and go, and of a run that can't be evaluated: the others are evaluated all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cluster import connection
from orchestrator.cluster.connection import Capacity
from orchestrator.evaluation import shards
from orchestrator.evaluation.protocols import protocol_for
from orchestrator.host.interrupt import Interrupt
from orchestrator.records.events import Evaluated
from orchestrator.records.journal import Journal
from orchestrator.records.rungs import climbed
from orchestrator.records.runs import Run, confirmation_key, trial_key
from orchestrator.records.study_folder import create_study_folder
from orchestrator.records.trials import trials
from orchestrator.report.page import write_report
from orchestrator.study import evaluations
from orchestrator.study.confirm import confirm
from orchestrator.study.ladder import climb
from orchestrator.study.progress import StudyView
from orchestrator.study.session import Session
from search_spaces.study import Study, parse_study
from tests.conftest import TINY
from tests.orchestrator.made_up import confirm_run, end_run, propose_run
from trainers import checkpoint
from trainers.config import apply_values
from trainers.loop import fit
from trainers.ranks import Ranks

pytestmark = pytest.mark.ray

STUDY = parse_study(
    {
        "name": "s",
        "experiment": apply_values(TINY, {"epochs": 1, "evaluation.epsilon": 0.03}),
        "space": {"attack.epsilon": [0.01, 0.05]},
        "search": {"trials": 2},
        "confirm": {"top": 2, "seeds": 1, "attack": "pgd20", "samples": 40, "shard": 20, "batch_size": 20},
        "resources": {"concurrent_trials": 1},
    }
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Two trials and their confirmations, trained; the best checkpoint of the second confirmation is broken."""
    journal = create_study_folder(tmp_path / "s", STUDY)
    for number, epsilon in enumerate((0.01, 0.05)):
        experiment = STUDY.experiment_for({"attack.epsilon": epsilon})
        folder = propose_run(journal, number, {"attack.epsilon": epsilon}, experiment)
        confirmed = confirm_run(journal, number, 1, {"attack.epsilon": epsilon}, experiment)
        for run_dir in (folder, confirmed):
            list(fit(experiment, run_dir, ranks=Ranks.current("cpu")))
        end_run(journal, trial_key(number), "complete", "", [0.5, 0.5])
        end_run(journal, confirmation_key(number, 1), "complete", "", [0.5, 0.5])
    return journal


@pytest.fixture(scope="module")
def capacity() -> Iterator[Capacity]:
    with connection.connect(None, trial_slots=1) as capacity:
        yield capacity


@contextmanager
def broken(run_dir: Path) -> Iterator[None]:
    file = checkpoint.best_folder(run_dir) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    yield
    file.write_bytes(whole)


def run(journal: Journal, key: str) -> Run:
    return next(run for run in journal.runs() if run.key == key)


def test_a_run_that_fails_is_left_out_with_its_reason_until_it_can_be_evaluated(
    journal: Journal, capacity: Capacity, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(STUDY, journal, capacity, StudyView(Console(width=500)), Interrupt(print))
    with broken(journal.confirmation_folder(1, 1)):
        confirm(session, anew=False)
    first, second = (run(journal, confirmation_key(number, 1)) for number in (0, 1))
    assert first.evaluation is not None
    assert (second.evaluation, first.not_evaluated) == (None, "")
    assert "model.safetensors" in second.not_evaluated
    said = capsys.readouterr().out
    assert f"{second.key}  not evaluated: {second.not_evaluated}" in said
    assert "\x1b" not in said
    assert "Traceback" in (second.folder / shards.ERROR_FILE).read_text()
    assert f"{second.key} was not evaluated" in write_report(journal).read_text()

    laddered = with_ladder(STUDY)
    session = replace(session, study=laddered)
    with broken(journal.trial_folder(0)):
        for _ in range(2):
            assert [trial.number for trial in climb(session, trials(journal.runs()))] == [1]
    (found,) = climbed(journal.events()).values()
    assert list(found.by_trial) == [1]
    assert "model.safetensors" in run(journal, trial_key(0)).not_evaluated

    session = replace(session, study=STUDY)
    confirm(session, anew=False)
    climb(replace(session, study=laddered), trials(journal.runs()))
    assert not any(run.not_evaluated for run in journal.runs())
    told = [(event.key, bool(event.problem)) for event in journal.events() if isinstance(event, Evaluated)]
    assert [failed for key, failed in told if key == confirmation_key(1, 1)] == [True, False]
    assert [failed for key, failed in told if key == trial_key(0)] == [True, True, False]
    assert all(run.evaluation is not None for run in journal.runs() if run.kind == "confirmation")

    raw = STUDY.to_raw()
    raw["confirm"] |= {"samples": 20}
    asked, resumed = replace(session, study=parse_study(raw)), replace(session, study=STUDY)
    for settings, anew, samples in ((asked, False, 40), (asked, True, 20), (resumed, False, 20)):
        confirm(settings, anew=anew)
        found = [run.evaluation for run in journal.runs() if run.kind == "confirmation"]
        assert [evaluation.protocol.samples for evaluation in found if evaluation is not None] == [samples] * 2


def with_ladder(study: Study) -> Study:
    raw = study.to_raw()
    raw["confirm"] |= {"top": 1, "ladder": [{"attack": "pgd20", "samples": 20, "keep": 1}]}
    return parse_study(raw)


def test_a_shard_outlives_many_losses_of_its_process(
    journal: Journal, capacity: Capacity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths, real = tmp_path / "deaths", shards.attempt_shard
    deaths.mkdir()

    def dying(*arguments: Any) -> str | None:
        count = len(list(deaths.iterdir()))
        if count < 4:
            (deaths / str(count)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    monkeypatch.setattr(evaluations, "attempt_shard", dying)
    session = Session(STUDY, journal, capacity, StudyView(Console(quiet=True)), Interrupt(print))
    subject = run(journal, confirmation_key(0, 1))
    protocol = replace(protocol_for(subject.experiment, STUDY.confirm, "best"), samples=20)
    ((_, evaluation),) = evaluations.evaluate_on_ray(session, [(subject, protocol)])
    assert len(evaluation.flags.standing["clean"]) == 20
    assert len(list(deaths.iterdir())) == 4
