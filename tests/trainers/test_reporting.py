"""A run says on what it computes before its first epoch."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from trainers import loop
from trainers.__main__ import main
from trainers.precision import precision_notices
from trainers.reporting import on_device
from trainers.run_folder import TakenOver


def test_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert on_device(torch.device("cpu")) == "on the CPU, 1 thread"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert on_device(torch.device("cpu")) == "on the CPU, 4 threads"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    assert on_device(torch.device("cuda", 1)) == "on the GPU NVIDIA H100 (cuda:1)"


@pytest.mark.parametrize(
    ("capabilities", "known"),
    [({"avx2": True, "amx_bf16": False}, False), ({"amx_bf16": True}, True), ({"avx512_bf16": True}, True)],
)
def test_a_precision_that_a_cpu_emulates_is_worth_a_notice(
    capabilities: dict[str, bool], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert bool(precision_notices("bfloat16", cpu)) is not known
    assert precision_notices("tf32", cpu) == ["precision: tf32: CPUs have none: this is float32, under another digest"]
    assert precision_notices("tf32", torch.device("cuda")) == []
    assert precision_notices("float32", cpu) == precision_notices("bfloat16", torch.device("cuda")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="it computes on a GPU here")
def test_a_run_in_an_emulated_precision_says_so_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    words = ["data.size=8", "data.train_samples=64", "optimizer.batch_size=32", "evaluation.probe_samples=8"]
    assert main([*words, "model.width=4", "epochs=1", "precision=bfloat16", "--run-dir", str(tmp_path / "run")]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == "note: precision: bfloat16: this CPU has no matrix units for it; float32 is many times faster here"


@pytest.mark.skipif(torch.cuda.is_available(), reason="it computes on a GPU here")
def test_a_run_says_on_what_it_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.size=8", "data.train_samples=100", "model.width=4", "epochs=1", "evaluation.probe_samples=10"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"run folder {tmp_path}/run, ")
    assert " passes per image on the CPU, " in first


def test_a_run_that_diverges_says_so_and_what_may_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.size=8", "data.train_samples=256", "optimizer.batch_size=8", "model.width=4", "epochs=1"]
    # Every step multiplies the weights by -8, until float32 overflows.
    rates = ["optimizer.learning_rate=10", "optimizer.weight_decay=0.9", "schedule.name=constant"]
    assert main([*words, *rates, "--run-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: diverged: the loss is not finite at epoch 1, step ")
    assert "lower optimizer.learning_rate" in error


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["data.size=8", "epochs=1", "--run-dir", str(tmp_path / "file" / "run")]) == 3
    assert f"{tmp_path}/file/run: Not a directory; name another --run-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (
            TakenOver("run is trained by another process now"),
            "error: run is trained by another process now; this one has stopped\n",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "error: run: No space left on device; name another --run-dir, or free this one\n",
        ),
    ],
)
def test_what_ends_a_run_from_outside_is_one_message(
    refused: OSError, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(*_arguments: object, **_settings: object) -> None:
        raise refused

    monkeypatch.setattr(loop, "keep", keep)
    monkeypatch.chdir(tmp_path)
    words = ["data.size=8", "data.train_samples=64", "optimizer.batch_size=32", "evaluation.probe_samples=8"]
    assert main([*words, "epochs=1", "--run-dir", "run"]) == 3
    assert capsys.readouterr().err == said


def test_ctrl_c_is_no_traceback_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(*_arguments: object, **_settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "keep", keep)
    words = ["data.size=8", "data.train_samples=64", "optimizer.batch_size=32", "evaluation.probe_samples=8"]
    assert main([*words, "epochs=1", "--run-dir", str(tmp_path / "run")]) == 130
    said = f"interrupted; the same command again goes on after the last epoch in {tmp_path / 'run'}\n"
    assert capsys.readouterr().err == said


def test_a_file_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.pt").write_bytes(b"\xff\xfe")
    assert main([str(tmp_path / "weights.pt")]) == 2
    assert f"error: {tmp_path}/weights.pt: can't be read: 'utf-8' codec" in capsys.readouterr().err
