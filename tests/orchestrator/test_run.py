"""What a driver says last, and which folder it works in; what it does between is left out here."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.cli import main
from orchestrator.cluster.connection import Capacity, NodeCapacity
from orchestrator.cluster.joining import JOB_VARIABLE
from orchestrator.records.journal import EVALUATION_FILE, Journal
from orchestrator.records.study_folder import create_study_folder
from orchestrator.study import run
from search_spaces.study import Study, parse_study
from tests.orchestrator.made_up import confirm_run, evaluation
from trainers.problems import InvalidInput

Drive = Callable[..., list[str]]
UNFIT = InvalidInput.single("resources.workers", "3 workers do not fit")


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Drive:
    """Run a verb in an empty folder without Ray and MLflow; it ends as told, and all that it printed comes back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    driven: list[Path] = []

    @contextmanager
    def tracker(journal: Journal, *_: object) -> Iterator[SimpleNamespace]:
        driven.append(journal.folder)
        yield SimpleNamespace(behind=None, start=lambda: None)

    def call(*words: str, before: BaseException | None = None, during: BaseException | None = None) -> list[str]:
        @contextmanager
        def on_ray(*_: object, search: bool) -> Iterator[None]:
            if before is not None:
                raise before
            yield

        def phases(_session: None, *, search: bool) -> bool:
            if during is not None:
                raise during
            return True

        monkeypatch.setattr(run, "preflight", lambda *_, **__: None)
        monkeypatch.setattr(run, "Tracker", tracker)
        monkeypatch.setattr(run, "_on_ray", on_ray)
        monkeypatch.setattr(run, "_run_phases", phases)
        capsys.readouterr()
        main(list(words))
        said = capsys.readouterr()
        return [str(driven[-1]), *(said.out + said.err).splitlines()]

    return call


def a_study(folder: Path) -> Study:
    study = parse_study({"name": "tiny", "search": {"trials": 2}})
    create_study_folder(folder, study)
    return study


def test_the_last_line_goes_on_with_the_same_verb_options_and_folder(tmp_path: Path, drive: Drive) -> None:
    a_study(tmp_path / "my runs" / "tiny")
    (tmp_path / "study.yaml").write_text((tmp_path / "my runs" / "tiny" / "study.yaml").read_text())
    last = drive("sweep", "study.yaml", "--storage", "my runs", "--address", "head:6379")[-1]
    assert last == "resume with: orchestrator resume 'my runs/tiny' --address head:6379"
    assert drive(*shlex.split(last)[3:])[-1] == last
    last = drive("confirm", "my runs/tiny", "--seeds", "5", "--attack", "pgd20,cw", "--address", "head:6379")[-1]
    assert last == "resume with: orchestrator confirm 'my runs/tiny' --seeds 5 --attack pgd20,cw --address head:6379"
    assert drive(*shlex.split(last)[3:])[-1] == last


def test_a_job_of_a_cluster_is_gone_on_with_as_one(
    tmp_path: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_study(tmp_path / "tiny")
    monkeypatch.setenv(JOB_VARIABLE, "tiny-3")
    assert drive("resume", "tiny")[-1] == "resume with: orchestrator job resume tiny-3"


def test_after_an_error_the_command_is_the_last_line_if_work_had_begun(tmp_path: Path, drive: Drive) -> None:
    a_study(tmp_path / "tiny")
    resume = "resume with: orchestrator resume tiny"
    assert drive("resume", "tiny", during=RuntimeError("broke"))[-2:] == [
        "internal error: RuntimeError: broke (--debug shows where)",
        resume,
    ]
    assert drive("resume", "tiny", during=KeyboardInterrupt())[-1] == resume
    assert drive("resume", "tiny", before=KeyboardInterrupt())[-1] == resume
    for error in (UNFIT, ConnectionError("nothing answers")):
        assert drive("resume", "tiny", before=error)[1:] == [f"error: {error}"]


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("broke"), 70), (ConnectionError("gone"), 3), (KeyboardInterrupt(), 130)]
)
def test_the_exit_code_says_whose_matter_the_end_was(
    tmp_path: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    a_study(tmp_path / "tiny")
    drive("resume", "tiny")

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run, "_run_phases", fails)
    assert main(["resume", "tiny"]) == code


@pytest.mark.parametrize(("where", "folder"), [("", "kept"), ("kept", "."), ("kept/trials", "..")])
@pytest.mark.parametrize("verb", ["resume", "confirm"])
def test_a_folder_that_was_renamed_is_the_one_that_is_worked_in(
    tmp_path: Path, drive: Drive, verb: str, where: str, folder: str
) -> None:
    a_study(tmp_path / "tiny")
    (tmp_path / "tiny").rename(tmp_path / "kept")
    (tmp_path / "kept" / "trials").mkdir()
    os.chdir(tmp_path / where)
    assert drive(verb, folder)[0] == str(tmp_path / "kept")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("workers", "confirming", "top", "slots"), [(2, 4, 3, 4), (4, 2, 3, 4), (2, 8, 3, 4), (2, 4, 0, 4), (1, 1, 0, 8)]
)
def test_there_are_as_many_slots_as_either_phase_fills(
    workers: int, confirming: int, top: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "local_capacity", lambda: Capacity((NodeCapacity(8, 0),), private=True))
    raw = {"name": "s", "resources": {"workers": workers}, "confirm": {"workers": confirming, "top": top}}
    assert run._trial_slots(parse_study(raw)) == slots


@pytest.mark.parametrize("width", [100, 160])
def test_without_an_attack_the_clean_accuracy_is_printed_once(tmp_path: Path, width: int) -> None:
    journal, experiment = Journal(tmp_path), parse_study({"name": "tiny"}).experiment_for({})
    folder = confirm_run(journal, 0, 1, {}, experiment)
    evaluation(experiment.digest(), {"clean": 85}, "clean").save(folder / EVALUATION_FILE)
    printed = io.StringIO()
    run._print_confirmed(journal, Console(file=printed, width=width))
    (heading,) = [line for line in printed.getvalue().splitlines() if line.startswith("trial")]
    assert heading.split().count("clean") == 1
    assert printed.getvalue().count("85.00") == 1


@pytest.mark.parametrize(("top", "words"), [(0, []), (3, ["--top", "0"])])
def test_a_confirmation_of_nothing_is_refused_before_ray_starts(
    tmp_path: Path, drive: Drive, capsys: pytest.CaptureFixture[str], top: int, words: list[str]
) -> None:
    study = parse_study({"name": "tiny", "confirm": {"top": top}})
    create_study_folder(tmp_path / "tiny", study)
    assert main(["confirm", "tiny", *words]) == 2
    said = "confirm.top: 0: nothing would be confirmed; say how many configurations, at least 1, with --top N"
    assert said in capsys.readouterr().err
    assert drive("confirm", "tiny", "--top", "2")[-1] == "resume with: orchestrator confirm tiny --top 2"


def test_more_are_confirmed_than_the_ladder_of_the_study_leaves(tmp_path: Path, drive: Drive) -> None:
    ladder = [{"attack": "cw", "samples": 9, "keep": 1}]
    create_study_folder(tmp_path / "tiny", parse_study({"name": "tiny", "confirm": {"top": 1, "ladder": ladder}}))
    assert drive("confirm", "tiny", "--top", "2")[-1] == "resume with: orchestrator confirm tiny --top 2"
