"""Trials of two workers in one group: a dead worker, a dead actor, and a user who will not wait for the epoch's end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from orchestrator.exit_codes import INTERRUPTED
from orchestrator.records.journal import Journal
from tests.faults.conftest import shaken_study
from tests.faults.laboratory import TRAIN_WORKER, TRIAL_ACTOR, Injection, Laboratory
from tests.faults.processes import kill
from tests.faults.undisturbed import assert_same_epochs, assert_same_run, meanwhile, train_on_two_ranks

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


@dataclass
class Survived:
    """What was shaken, what it should be, and what was said at the second Ctrl-C."""

    laboratory: Laboratory
    reference: Journal
    end: tuple[int, str]


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory, injections: list[Injection]) -> Iterator[Survived]:
    folder = tmp_path_factory.mktemp("group")
    with Laboratory(folder, shaken_study("group", 2, 2, sampler="random", seed=5)) as laboratory:
        reference = meanwhile(laboratory.study, folder / "reference", train_on_two_ranks)
        laboratory.start()
        laboratory.wait_for_epoch(0, 1)
        with laboratory.fault("Train worker killed"):
            kill(laboratory.process(TRAIN_WORKER))
            laboratory.wait_for_a_new_epoch()
        with laboratory.fault("actor of a worker group killed"):
            kill(laboratory.process(TRIAL_ACTOR))
            laboratory.wait_for_a_new_epoch()
        laboratory.wait_for_epoch(1, 1)
        laboratory.interrupt_twice()
        end = laboratory.end()
        injections += laboratory.injections
        yield Survived(laboratory, reference.result(), end)


def test_a_trial_ends_as_if_nothing_had_happened_and_so_begins_the_next(survived: Survived) -> None:
    ours, theirs = survived.laboratory.journal.runs(), survived.reference.runs()
    assert [run.state for run in ours] == ["complete", "running"]
    assert [run.values for run in ours] == [run.values for run in theirs]
    assert_same_run(ours[0], theirs[0])
    assert_same_epochs(ours[1], theirs[1])


def test_no_epoch_of_a_group_is_recorded_or_computed_twice(survived: Survived) -> None:
    for injection in survived.laboratory.injections:
        assert (injection.epochs_lost, injection.epochs_doubled) == (0, 0), injection


def test_a_second_ctrl_c_stops_at_once_and_says_how_to_go_on(survived: Survived) -> None:
    code, said = survived.end
    assert code == INTERRUPTED, said
    assert said.splitlines()[-2:] == [
        "stopping after the current epoch; press Ctrl-C again to stop at once",
        "resume with: orchestrator resume runs/group",
    ]
    assert "Traceback" not in said
