"""The records file of a run: whole lines count, a torn one never does, an epoch counts once."""

from __future__ import annotations

import random

import pytest

from trainers.problems import InvalidInput
from trainers.records import (
    RECORDS_FILE,
    EpochRecord,
    Follower,
    RecordsFollower,
    append_line,
    append_record,
    read_records,
)


def record(epoch, loss=0.5):
    return EpochRecord(epoch, 1e9 + epoch, {"train/loss": loss, "val/clean_accuracy": 1 / 3})


def test_a_record_is_one_line_and_comes_back_exactly():
    line = record(3).to_json()
    assert "\n" not in line
    found, again = (EpochRecord.from_json(line) for _ in range(2))
    assert found == record(3)
    # Thousands of records are held at once: their names, two thirds of what each would take, are there once.
    assert all(name is other for name, other in zip(found.metrics, again.metrics, strict=True))


def test_a_run_without_records_has_none(tmp_path):
    assert read_records(tmp_path) == []


def test_records_are_read_in_the_order_of_epochs(tmp_path):
    for epoch in (1, 0, 2):
        append_record(tmp_path, record(epoch))
    assert read_records(tmp_path) == [record(0), record(1), record(2)]


@pytest.mark.parametrize("torn", ['{"epo', '{"epoch": 1, "time": 1.0, "metrics": {}}', "\x00\x00"])
def test_a_torn_last_line_is_no_record_and_is_cut_off_by_the_next(torn, tmp_path):
    append_record(tmp_path, record(0))
    with open(tmp_path / RECORDS_FILE, "a") as file:
        file.write(torn)
    assert read_records(tmp_path) == [record(0)]
    append_record(tmp_path, record(1))
    assert read_records(tmp_path) == [record(0), record(1)]
    assert (tmp_path / RECORDS_FILE).read_text() == record(0).to_json() + "\n" + record(1).to_json() + "\n"


def test_a_file_of_one_torn_line_starts_anew(tmp_path):
    (tmp_path / RECORDS_FILE).write_text('{"epoch"')
    append_record(tmp_path, record(0))
    assert read_records(tmp_path) == [record(0)]


def test_an_epoch_written_twice_counts_once_and_the_first_stands(tmp_path):
    append_record(tmp_path, record(0, loss=0.5))
    append_record(tmp_path, record(0, loss=0.9))
    assert read_records(tmp_path) == [record(0, loss=0.5)]


@pytest.mark.parametrize("broken", ['{"epoch": 1, "ti', '{"epoch": 1, "time": 2.0}', "[]"])
def test_a_whole_line_that_is_no_record_is_named_every_time(broken, tmp_path):
    append_record(tmp_path, record(0))
    append_line(tmp_path / RECORDS_FILE, broken)
    append_record(tmp_path, record(2))
    follower = RecordsFollower(tmp_path)
    for _ in range(2):
        with pytest.raises(InvalidInput) as refused:
            follower.read()
        assert str(tmp_path / RECORDS_FILE) in str(refused.value)
        assert repr(broken) in str(refused.value)


def test_a_line_that_is_no_text_is_no_record(tmp_path):
    (tmp_path / RECORDS_FILE).write_bytes(b"\xff\n")
    follower = RecordsFollower(tmp_path)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"has a line that is no record \(UnicodeDecodeError: .*\); mend it"):
            follower.read()


def test_lines_are_appended_to_a_file_in_a_folder_that_is_made(tmp_path):
    for line in ("ΔE", "γ"):
        append_line(tmp_path / "a" / "b.jsonl", line)
    assert Follower(tmp_path / "a" / "b.jsonl").read() == (["ΔE", "γ"], False)


def test_a_line_torn_within_a_character_is_torn(tmp_path):
    file = tmp_path / "journal.jsonl"
    append_line(file, "whole")
    with open(file, "ab") as handle:
        handle.write("γ".encode()[:1])
    assert Follower(file).read() == (["whole"], False)


@pytest.mark.parametrize("seed", range(20))
def test_following_gives_what_reading_it_all_gives_wherever_appends_and_torn_writes_are_cut(seed, tmp_path):
    """Written in pieces of any length, torn ends of any length, read at any moment."""
    draw = random.Random(seed)
    file = tmp_path / RECORDS_FILE
    file.touch()
    followed, follower = [], RecordsFollower(tmp_path)
    lines = Follower(file)
    for epoch in range(30):
        line = EpochRecord(epoch, 1e9, {f"ΔE/{'γ' * draw.randrange(20)}": draw.random()}).to_json()
        if draw.random() < 0.5:
            content = line.encode()
            with open(file, "ab") as handle:
                handle.write(content[: draw.randrange(len(content) + 1)])
        if draw.random() < 0.5:
            followed += lines.read()[0]
            assert list(follower.read()) == read_records(tmp_path)
        append_line(file, line)
    followed += lines.read()[0]
    assert followed == file.read_text().splitlines()
    assert list(follower.read()) == read_records(tmp_path)
    assert [entry.epoch for entry in follower.read()] == list(range(30))


@pytest.mark.parametrize("change", ["shrunk", "replaced", "removed"])
def test_a_file_that_is_not_the_one_that_was_read_is_read_from_its_start(change, tmp_path):
    for epoch in range(3):
        append_record(tmp_path, record(epoch))
    follower = RecordsFollower(tmp_path)
    assert len(follower.read()) == 3
    file = tmp_path / RECORDS_FILE
    if change == "shrunk":
        file.write_text(record(7).to_json() + "\n")
    else:
        other = tmp_path / "other"
        other.write_text("".join(record(epoch).to_json() + "\n" for epoch in range(7, 17)))
        file.unlink() if change == "removed" else other.replace(file)
    assert [entry.epoch for entry in follower.read()] == {
        "shrunk": [7], "replaced": list(range(7, 17)), "removed": []
    }[change]  # fmt: skip


@pytest.mark.parametrize("torn", [0, 1, 4095, 4096, 4097, 20_000])
def test_appending_cuts_a_torn_end_of_any_length(torn, tmp_path):
    file = tmp_path / "journal.jsonl"
    append_line(file, "whole")
    with open(file, "ab") as handle:
        handle.write(b"x" * torn)
    append_line(file, "next")
    assert file.read_bytes() == b"whole\nnext\n"
