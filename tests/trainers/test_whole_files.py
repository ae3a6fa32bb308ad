"""Files appear whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.config import parse
from trainers.run_folder import EXPERIMENT_FILE, claim
from trainers.whole_files import write_whole, write_with


def test_of_two_writers_at_once_both_write_the_whole_and_the_last_one_stays(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"

    def while_another_writes(opened) -> None:
        opened.write(b"half")
        write_whole(file, "another's")
        assert file.read_text() == "another's"
        opened.write(b" and half")

    write_with(file, while_another_writes)
    assert file.read_text() == "half and half"
    assert list(file.parent.iterdir()) == [file]


def test_of_a_file_that_can_not_be_written_nothing_stays(tmp_path: Path) -> None:
    def fail(opened) -> None:
        opened.write(b"half")
        raise OSError("full")

    write_whole(tmp_path / "file", "before")
    with pytest.raises(OSError, match="full"):
        write_with(tmp_path / "file", fail)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_processes_that_claim_a_run_at_once_do_not_fail_for_each_other(tmp_path: Path) -> None:
    experiment = parse({})
    with ThreadPoolExecutor(2) as both:
        for done in [both.submit(claim, experiment, tmp_path, True, str(writer)) for writer in range(200)]:
            done.result()
    assert (tmp_path / EXPERIMENT_FILE).read_text() == experiment.to_yaml()
