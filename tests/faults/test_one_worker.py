"""Trials of one process: dead processes, a broken checkpoint, an outage of MLflow, a full disk, torn files.

Nothing is lost, nothing is doubled, and all is as if nothing had happened.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from mlflow import MlflowClient

from orchestrator.cli import main
from orchestrator.exit_codes import ENVIRONMENT, OK, SOME_FAILED
from orchestrator.records.journal import JOURNAL_FILE, Journal
from tests.faults.conftest import DIVERGING, shaken_study
from tests.faults.full_disk import filled, small_disk
from tests.faults.laboratory import TRIAL_ACTOR, Injection, Laboratory
from tests.faults.processes import kill
from tests.faults.servers import TrackingServer
from tests.faults.undisturbed import (
    assert_same_optuna_trials,
    assert_same_run,
    assert_tracked_once,
    meanwhile,
    tracked_epochs,
    train_here,
)
from trainers.records import RECORDS_FILE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


@dataclass
class Survived:
    """What was shaken, what it should be, and what was said on the way."""

    laboratory: Laboratory
    reference: Journal
    server: TrackingServer
    full_disk: tuple[int, str] | None
    synced: list[int]
    end: tuple[int, str]


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory, injections: list[Injection]) -> Iterator[Survived]:
    folder = tmp_path_factory.mktemp("shaken")
    server = TrackingServer(folder)
    server.start()
    content = shaken_study("shaken", 4, 1, seed=1, start=[DIVERGING]) | {"tracking": {"uri": server.uri}}
    with small_disk(folder / "runs", 32) as mounted, Laboratory(folder, content) as laboratory:
        try:
            reference = meanwhile(laboratory.study, folder / "reference", train_here)
            server.wait()
            laboratory.start()

            laboratory.wait_for_epoch(1, 1)
            server.kill()
            with laboratory.fault("trial's process killed"):
                kill(laboratory.process(TRIAL_ACTOR))
                laboratory.wait_for_a_new_epoch()
            with laboratory.fault("newest checkpoint corrupted, process killed"):
                actor = laboratory.process(TRIAL_ACTOR)
                os.kill(actor, signal.SIGSTOP)
                laboratory.corrupt_newest_checkpoint(1)
                kill(actor)
                laboratory.wait_for_a_new_epoch()

            full_disk = None
            if mounted:
                laboratory.wait_for_epoch(2, 1)
                with filled(folder / "runs"):
                    full_disk = laboratory.end()
                with laboratory.fault("disk full, freed, resumed"):
                    laboratory.start()
                    laboratory.wait_for_a_new_epoch()

            laboratory.wait_for_epoch(2, 5)
            laboratory.kill_driver()
            laboratory.tear(laboratory.run_dir(2) / RECORDS_FILE)
            laboratory.tear(laboratory.root / JOURNAL_FILE)
            with laboratory.fault("MLflow killed, brought back and synced"):
                server.start()
                server.wait()
                assert main(["sync", str(laboratory.root)]) == OK
                synced = tracked_epochs(MlflowClient(tracking_uri=server.uri), laboratory.journal, "trial-0001")
            with laboratory.fault("driver killed, records and journal torn, resumed"):
                laboratory.start()
                laboratory.wait_for_a_new_epoch()
            end = laboratory.end()
            injections += laboratory.injections
            yield Survived(laboratory, reference.result(), server, full_disk, synced, end)
        finally:
            laboratory.clean_up()
            server.kill()


def test_every_trial_ends_as_if_nothing_had_happened(survived: Survived) -> None:
    ours, theirs = survived.laboratory.journal.runs(), survived.reference.runs()
    assert [run.state for run in ours] == ["failed", "complete", "complete", "complete"]
    for one, other in zip(ours, theirs, strict=True):
        assert one.values == other.values
        assert_same_run(one, other)


def test_optuna_holds_the_trials_that_it_would_hold(survived: Survived) -> None:
    assert_same_optuna_trials(survived.laboratory.study, survived.laboratory.journal, survived.reference)


def test_no_epoch_is_recorded_twice_and_at_most_one_is_computed_again_by_a_fault(survived: Survived) -> None:
    for injection in survived.laboratory.injections:
        assert injection.epochs_doubled == 0, injection
        assert injection.epochs_lost <= ("checkpoint" in injection.fault), injection


def test_a_study_with_a_failed_trial_says_so_and_leaves_mlflow_complete(survived: Survived) -> None:
    code, said = survived.end
    assert code == SOME_FAILED
    assert "MLflow is behind" not in said
    assert "Traceback" not in said


def test_an_outage_of_mlflow_is_made_up_for_by_hand_before_the_study_goes_on(survived: Survived) -> None:
    assert survived.synced == list(range(16))


def test_mlflow_holds_every_run_and_every_epoch_exactly_once(survived: Survived) -> None:
    assert_tracked_once(MlflowClient(tracking_uri=survived.server.uri), survived.laboratory.journal)


def test_a_full_disk_stops_the_study_with_its_cause_and_the_command_that_resumes(survived: Survived) -> None:
    if survived.full_disk is None:
        pytest.skip("no file system of its own may be mounted here")
    code, said = survived.full_disk
    assert code == ENVIRONMENT, said
    assert "the disk is full" in said
    assert "resume with: orchestrator resume runs/shaken" in said
    assert "Traceback" not in said
    assert "failed" not in said.partition("trial-0001")[2]
