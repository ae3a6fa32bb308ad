"""A study seen from another terminal."""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import os
import threading

import pytest
from rich.console import Console

from orchestrator.cli import main
from orchestrator.commands import status
from orchestrator.records.driver_lock import is_driven, only_driver
from orchestrator.records.study_folder import create_study_folder
from search_spaces.study import parse_study
from tests.orchestrator.made_up import end_run, propose_run
from trainers.problems import InvalidInput
from trainers.records import EpochRecord, append_record

METRICS = {
    "val/clean_accuracy": 0.9, "val/pgd10_accuracy": 0.4, "val/chance_accuracy": 0.1,
    "probe/delta_energy/mean": -0.1, "probe_reference/delta_energy/mean": -0.25,
    "probe/adversarial_accuracy": 0.4, "probe_reference/pgd10_accuracy": 0.4,
}  # fmt: skip


def test_it_shows_every_run_and_whether_a_driver_works(tmp_path, capsys):
    study = parse_study({"name": "seen", "experiment": {"epochs": 2}, "search": {"trials": 3}})
    journal = create_study_folder(tmp_path / "seen", study)
    for number, epochs in enumerate((2, 1)):
        folder = propose_run(journal, number, {}, study.experiment_for({"seed": number}))
        for epoch in range(epochs):
            append_record(folder, EpochRecord(epoch, 0.0, METRICS))
    end_run(journal, "trial-0000", "complete", "")
    assert main(["status", str(journal.folder)]) == 0
    printed = capsys.readouterr().out
    assert "2/2" in printed
    assert "1/2" in printed
    assert "seen: 1 of 3 trials ended, 0 confirmations; no driver is running" in printed
    fewer = study.model_copy(update={"search": study.search.model_copy(update={"trials": 1})})
    create_study_folder(journal.folder, fewer)
    end_run(journal, "trial-0001", "stopped", "")
    assert main(["status", str(journal.folder)]) == 0
    assert "seen: 2 trials ended, of 1 wanted, 0 confirmations; no driver is running" in capsys.readouterr().out

    with open(journal.folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_driven(journal.folder)
        assert main(["status", str(journal.folder)]) == 0
    assert "; running" in capsys.readouterr().out
    # Following a study without a driver ends at once.
    assert main(["status", str(journal.folder), "--follow"]) == 0


def test_a_driver_that_starts_while_somebody_looks_waits_a_moment_and_not_for_another_driver(tmp_path):
    journal = create_study_folder(tmp_path / "seen", parse_study({"name": "seen"}))
    with open(journal.folder / "lock", "w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.15, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with only_driver(journal.folder):
            assert is_driven(journal.folder)
            with pytest.raises(InvalidInput, match="another process is running"), only_driver(journal.folder):
                pytest.fail("two drivers at once")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_no_driver_starts_and_the_status_says_so(code, tmp_path, monkeypatch, capsys):
    """As on Lustre that is mounted without -o flock."""

    def flock(*_):
        raise OSError(code, os.strerror(code))

    journal = create_study_folder(tmp_path / "seen", parse_study({"name": "seen"}))
    monkeypatch.setattr(fcntl, "flock", flock)
    said = rf"--storage: '{tmp_path}': its file system has no locks \({os.strerror(code)}\).* -o flock"
    with pytest.raises(InvalidInput, match=said), only_driver(journal.folder):
        pytest.fail("two drivers could do this")
    assert main(["status", str(journal.folder), "--follow"]) == 0
    assert "without locks, nobody knows whether it runs" in " ".join(capsys.readouterr().out.split())


def test_following_into_a_pipe_prints_what_changed_only(tmp_path, monkeypatch: pytest.MonkeyPatch):
    study = parse_study({"name": "seen", "experiment": {"epochs": 3}, "search": {"trials": 1}})
    journal = create_study_folder(tmp_path / "seen", study)
    folder = propose_run(journal, 0, {}, study.experiment_for({}))
    looks = itertools.count(1)
    driven = True

    def sleep(_seconds: float) -> None:
        nonlocal driven
        look = next(looks)
        if look == 3:
            append_record(folder, EpochRecord(0, 0.0, METRICS))
        driven = look < 6

    monkeypatch.setattr(status.time, "sleep", sleep)
    monkeypatch.setattr(status, "is_driven", lambda _folder: driven)
    output = io.StringIO()
    status.show_status(journal.folder, Console(file=output, width=200), follow=True)
    shown = [line.split()[3:] for line in output.getvalue().splitlines() if line.startswith("trial-0000")]
    assert len(shown) == 3  # at first, after the epoch, when the driver had ended
    assert next(looks) == 7
