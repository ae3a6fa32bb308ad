"""The records file of a run: whole lines count, a torn one never does, an epoch counts once."""

from __future__ import annotations

import pytest

from trainers.records import RECORDS_FILE, EpochRecord, append_line, append_record, read_lines, read_records


def record(epoch, loss=0.5):
    return EpochRecord(epoch, 1e9 + epoch, {"train/loss": loss, "val/clean_accuracy": 1 / 3})


def test_a_record_is_one_line_and_comes_back_exactly():
    line = record(3).to_json()
    assert "\n" not in line
    assert EpochRecord.from_json(line) == record(3)


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


def test_lines_are_appended_to_a_file_in_a_folder_that_is_made(tmp_path):
    for line in ("ΔE", "γ"):
        append_line(tmp_path / "a" / "b.jsonl", line)
    assert read_lines(tmp_path / "a" / "b.jsonl") == ["ΔE", "γ"]


def test_a_line_torn_within_a_character_is_torn(tmp_path):
    file = tmp_path / "journal.jsonl"
    append_line(file, "whole")
    with open(file, "ab") as handle:
        handle.write("γ".encode()[:1])
    assert read_lines(file) == ["whole"]
