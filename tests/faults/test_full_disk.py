"""What is written on a full disk is refused with its cause, leaves no half things behind, and can be written later."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.host import disk
from tests.conftest import TINY
from tests.faults.full_disk import filled, small_disk
from trainers import checkpoint
from trainers.config import parse
from trainers.models.build import build_model
from trainers.records import EpochRecord, append_record, read_records

RECORDS = [EpochRecord(epoch, 1.5, {f"val/quantity{i}": i / 7 for i in range(400)}) for epoch in range(2)]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", 4) as mounted:
        if not mounted:
            pytest.skip("no file system of its own may be mounted here")
        yield tmp_path / "small"


def test_a_checkpoint_that_has_no_room_leaves_nothing_and_the_one_before_stands(small: Path) -> None:
    experiment = parse(TINY)
    model, state = build_model(experiment), {"optimizer": {"momentum": torch.zeros(5)}}
    checkpoint.save(small, experiment, model, state, RECORDS[0])
    with filled(small), pytest.raises(OSError, match="No space left") as refused:
        checkpoint.save(small, experiment, model, state, RECORDS[1])
    assert disk.is_full(refused.value)
    assert [path.name for path in (small / "checkpoints").iterdir()] == ["epoch_0000"]
    checkpoint.save(small, experiment, model, state, RECORDS[1])
    newest = checkpoint.latest(small)
    assert newest is not None
    assert newest.record == RECORDS[1]


def test_a_record_that_has_no_room_is_written_whole_later(small: Path) -> None:
    append_record(small, RECORDS[0])
    with filled(small), pytest.raises(OSError, match="No space left"):
        append_record(small, RECORDS[1])
    assert read_records(small) == RECORDS[:1]
    append_record(small, RECORDS[1])
    assert read_records(small) == RECORDS


def test_a_full_disk_is_recognized_in_a_database_and_before_it_hurts(small: Path) -> None:
    database = sqlite3.connect(small / "some.db", isolation_level=None)
    database.execute("create table t (x)")
    disk.check_space(small)
    with filled(small):
        with pytest.raises(sqlite3.OperationalError) as refused:
            database.execute("insert into t values (zeroblob(1000000))")
        with pytest.raises(OSError, match="No space left") as warned:
            disk.check_space(small)
    database.close()
    outer = RuntimeError("the storage failed")
    outer.__cause__ = refused.value
    assert disk.is_full(outer)
    assert disk.is_full(warned.value)
    assert not disk.is_full(RuntimeError("no space"))
