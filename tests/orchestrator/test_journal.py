"""The journal of hundreds of trials: a step reads what is new, and knows all the same what reading it all would say."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.records import events
from orchestrator.records.events import Ended, Evaluated, Proposed
from orchestrator.records.journal import EVALUATION_FILE, JOURNAL_FILE, Journal
from orchestrator.records.runs import Run, trial_key
from orchestrator.records.study_folder import (
    check_defaults,
    create_study_folder,
    open_study_folder,
    read_identity,
    read_study,
)
from search_spaces.study import Study, parse_study
from tests.orchestrator.made_up import end_run, propose_run
from trainers.config import Experiment, apply_values, parse
from trainers.evaluation.result import EvaluationResult, Flags, Protocol
from trainers.problems import InvalidInput
from trainers.records import RECORDS_FILE, EpochRecord, append_record

STUDY = parse_study({"name": "s", "experiment": {"evaluation": {"epsilon": 0.1}}})
METRICS = {f"val/quantity{i}": i / 7 for i in range(40)}


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 1e9 + epoch, METRICS)


def propose(journal: Journal, number: int) -> Path:
    return propose_run(journal, number, {"seed": number}, STUDY.experiment_for({"seed": number}))


def afresh(journal: Journal) -> list[Run]:
    return Journal(journal.folder).runs()


def bytes_read(step: Callable[[], object]) -> int:
    """What the kernel counts as read by this process during a step."""
    counters = Path("/proc/self/io")

    def count() -> int:
        return int(counters.read_text().split()[1])

    if not counters.exists():
        pytest.skip("needs the kernel's count of bytes read")
    before = count()
    own = count() - before
    before = count()
    step()
    return count() - before - own


def test_a_step_of_a_study_of_200_trials_reads_only_what_is_new(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    lines = "".join(record(epoch).to_json() + "\n" for epoch in range(50))
    experiment = STUDY.experiment_for({}).to_dict()
    for number in range(200):
        folder = journal.trial_folder(number)
        folder.mkdir(parents=True)
        (folder / RECORDS_FILE).write_text(lines)
        where = str(folder.relative_to(journal.folder))
        issued = {"values": {}, "experiment": experiment, "folder": where, "origin": None}
        journal.append(Proposed(key=trial_key(number), trial=number, kind="trial", seeds=1, **issued))
    on_disk = 200 * len(lines)
    assert bytes_read(journal.runs) > on_disk
    assert bytes_read(journal.runs) == 0
    folder = journal.trial_folder(200)

    def an_epoch() -> None:
        append_record(journal.trial_folder(7), record(50))

    def a_trial() -> None:
        assert propose(journal, 200) == folder
        append_record(folder, record(0))
        end_run(journal, trial_key(199), "failed", "made up")

    # Appending looks at the last byte of each file; one event of a trial holds its whole experiment.
    assert bytes_read(an_epoch) <= 1
    assert bytes_read(journal.runs) == len(record(50).to_json()) + 1
    assert bytes_read(a_trial) <= 3
    assert 0 < bytes_read(journal.runs) < 10_000
    assert journal.runs() == afresh(journal)
    assert bytes_read(lambda: afresh(journal)) > on_disk


@pytest.mark.parametrize("seed", range(5))
def test_what_is_remembered_is_what_a_fresh_look_finds_after_any_sequence_of_events(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    journal = create_study_folder(tmp_path / "s", STUDY)
    other = Journal(journal.folder)  # another process that writes
    folders: list[Path] = []
    epochs: dict[int, int] = {}

    def tear(file: Path) -> None:
        with open(file, "ab") as handle:
            handle.write(b'{"event": "proposed", "trial": 99'[: draw.randrange(1, 33)])

    for _ in range(60):
        writer = draw.choice([journal, other])
        action = draw.choice(["propose", "epoch", "epoch", "end", "tear journal", "tear records", "look"])
        number = draw.randrange(len(folders)) if folders else 0
        if action == "propose" or not folders:
            folders.append(propose(writer, len(folders)))
        elif action == "epoch":
            append_record(folders[number], record(epochs.get(number, 0)))
            epochs[number] = epochs.get(number, 0) + 1
        elif action == "end":
            end_run(writer, trial_key(number), draw.choice(["complete", "failed"]), "", [draw.random()])
        elif action == "tear journal":
            tear(journal.folder / JOURNAL_FILE)
        elif action == "tear records" and epochs.get(number):
            tear(folders[number] / RECORDS_FILE)
        if action == "look":
            assert journal.runs() == afresh(journal)
    assert journal.runs() == afresh(journal)
    assert journal.events() == Journal(journal.folder).events()
    assert [len(run.records) for run in journal.runs()] == [epochs.get(n, 0) for n in range(len(folders))]


def test_a_trial_that_was_issued_again_is_running_until_it_ends_again(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    states = []
    for end in ("failed", "complete"):
        propose(journal, 0)
        states.append(journal.runs()[0].state)
        end_run(journal, trial_key(0), end, "", [0.5])
        states.append(journal.runs()[0].state)
    assert states == ["running", "failed", "running", "complete"]


def test_runs_are_in_the_order_of_their_numbers_and_a_twin_is_of_an_earlier_trial(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    for number in (10_000, 9_999):
        propose(journal, number)
    for seed in (10, 2):
        propose_run(journal, 7, {}, STUDY.experiment_for({"seed": seed}), seed=seed)
    assert [run.key for run in journal.runs()] == [
        "trial-9999", "trial-10000", "trial-0007-seed2", "trial-0007-seed10"
    ]  # fmt: skip
    experiment = STUDY.experiment_for({})
    for number in (10_001, 9_998):
        propose_run(journal, number, {}, experiment)
        end_run(journal, trial_key(number), "complete", "", [0.5])
    found = [journal.twin(number, experiment) for number in (9_998, 9_999, 10_001)]
    assert [run and run.key for run in found] == [None, "trial-9998", "trial-9998"]


def test_a_twin_is_sought_without_a_look_at_the_runs_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    for number in range(5):
        propose(journal, number)
        end_run(journal, trial_key(number), "complete", "", [0.5])
    journal.confirm(0, 9, {}, STUDY.experiment_for({"seed": 9}))
    end_run(journal, "0000-seed9", "complete", "")
    journal.runs()
    hashed: list[int] = []
    digest = Experiment.digest
    monkeypatch.setattr(Experiment, "digest", lambda of: hashed.append(of.seed) or digest(of))
    found = [journal.twin(5, STUDY.experiment_for({"seed": seed})) for seed in (3, 7, 9)]
    assert [run and run.key for run in found] == ["trial-0003", None, None]
    assert hashed == [3, 7, 9]
    assert journal.twin(3, STUDY.experiment_for({"seed": 3})) is None  # itself


def evaluated(folder: Path, standing: tuple[bool, ...]) -> EvaluationResult:
    protocol = Protocol("digits", "test", 2, "0.1", "clean", 0, 2, 2, "best")
    evaluation = EvaluationResult(protocol, "digest", 0, Flags(0, 2, {"clean": standing}))
    evaluation.save(folder / EVALUATION_FILE)
    return evaluation


def test_an_evaluation_is_seen_when_it_appears_and_when_it_is_replaced(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    folder = propose(journal, 0)
    assert journal.runs()[0].evaluation is None
    for standing in ((True, True), (True, False)):
        saved = evaluated(folder, standing)
        assert journal.runs()[0].evaluation == saved
        assert bytes_read(journal.runs) == 0


def study_with(**sections: object) -> Study:
    return parse_study({"name": "s", "experiment": {"evaluation": {"epsilon": 0.1}, "epochs": 9}} | sections)


def test_the_files_of_a_run_that_ended_some_time_ago_are_not_looked_at_until_it_is_spoken_of(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    for number, ago in enumerate((0.0, 3600.0)):
        folder = propose(journal, number)
        append_record(folder, record(0))
        end = {"state": "stopped", "reason": "", "objectives": []}
        journal.append(Ended(time=time.time() - ago, key=trial_key(number), **end))

    def epochs() -> list[int]:
        return [len(run.records) for run in journal.runs()]

    assert epochs() == [1, 1]
    # A worker ends the epoch that it was in, of a run that has just been stopped; nobody writes into the other.
    for number in (0, 1):
        append_record(journal.trial_folder(number), record(1))
    assert epochs() == [2, 1]
    saved = evaluated(journal.trial_folder(1), (True, True))
    journal.append(Evaluated(key=trial_key(1), problem=""))
    assert epochs() == [2, 2]
    assert journal.runs()[1].evaluation == saved
    assert journal.runs() == afresh(journal)


def test_what_may_change_when_a_study_is_started_again_is_kept(tmp_path: Path) -> None:
    first = create_study_folder(tmp_path / "s", study_with(search={"trials": 2}))
    changed = study_with(
        search={"trials": 6}, resources={"cpus_per_worker": 2}, tracking={"uri": "http://elsewhere:5000"}
    )
    assert read_identity(create_study_folder(tmp_path / "s", changed).folder) == read_identity(first.folder)
    assert read_study(tmp_path / "s") == changed


def test_data_that_have_moved_are_looked_for_where_they_are_now(tmp_path: Path) -> None:
    for number, data in enumerate(({}, {"data": "digits"}, {"data": {"name": "digits", "download": True}})):
        short = study_with(experiment={"epochs": 9} | data)
        create_study_folder(tmp_path / f"{number}", short)
        create_study_folder(tmp_path / f"{number}", short.with_data_in(tmp_path / "new"))
    there = study_with(experiment={"data": {"name": "digits", "directory": "/old"}, "epochs": 9})
    journal = create_study_folder(tmp_path / "s", there)
    propose_run(journal, 0, {}, there.experiment_for({}))
    here = there.with_data_in(tmp_path / "new")
    check_defaults(here, create_study_folder(tmp_path / "s", here))
    study, (run,) = read_study(journal.folder), journal.runs()
    assert (study, run.experiment.data.directory) == (here, "/old")
    moved = study.located(run.experiment)
    assert moved.data.directory == str(tmp_path / "new")
    assert moved.digest() == run.experiment.digest()


def test_what_may_not_change_is_refused_with_its_field_and_both_values(tmp_path: Path) -> None:
    held = study_with(search={"trials": 2}, space={"method.name": ["fgsm", "sat"]})
    journal = create_study_folder(tmp_path / "s", held)
    journal.propose(0, {}, held.experiment_for({}), folder=journal.trial_folder(0))
    changed = study_with(search={"trials": 3, "seed": 4}, confirm={"top": 1}, space={"method.name": ["fgsm", "trades"]})
    with pytest.raises(InvalidInput) as refused:
        create_study_folder(tmp_path / "s", changed)
    said = {problem.field: problem.message for problem in refused.value.problems}
    assert list(said) == ["search.seed", "confirm.top", "space.method.name.choices"]
    assert said["confirm.top"].startswith(f"1, but the study in {tmp_path / 's'} has 3; use another name")
    assert "['fgsm', 'trades']" in said["space.method.name.choices"]
    assert read_study(tmp_path / "s") == held


def test_a_study_that_has_no_trial_may_still_change(tmp_path: Path) -> None:
    held, other = study_with(search={"trials": 2}), study_with(search={"trials": 2, "seed": 4}, confirm={"top": 1})
    first = create_study_folder(tmp_path / "s", held)
    assert read_identity(create_study_folder(tmp_path / "s", other).folder) == read_identity(first.folder)
    assert read_study(tmp_path / "s") == other
    (tmp_path / "s" / "optuna.db").touch()
    with pytest.raises(InvalidInput, match="but the study in"):
        create_study_folder(tmp_path / "s", held)
    workers = study_with(search={"trials": 2, "seed": 4}, confirm={"top": 1, "workers": 2})
    assert read_study(create_study_folder(tmp_path / "s", workers).folder) == workers


def test_a_run_that_was_begun_with_other_defaults_is_named_with_what_to_write(tmp_path: Path) -> None:
    study = study_with(space={"method.name": ["fgsm", "sat"]})
    journal = create_study_folder(tmp_path / "s", study)
    point = {"method.name": "sat"}
    today = study.experiment_for(point)
    propose_run(journal, 0, point, today, seed=1)
    check_defaults(study, journal)
    raw = apply_values(today.to_dict(), {"evaluation.probe_samples": 1024, "seed": 3})
    propose_run(journal, 1, point, parse(raw), seed=3)
    with pytest.raises(InvalidInput) as refused:
        check_defaults(study, journal)
    said = {problem.field: problem.message for problem in refused.value.problems}
    assert list(said) == ["experiment.evaluation.probe_samples"]
    assert "but trial-0001-seed3 was begun with 1024; write that into" in said["experiment.evaluation.probe_samples"]
    told = {"evaluation": {"epsilon": 0.1, "probe_samples": 1024}, "epochs": 9}
    fixed = study_with(space={"method.name": ["fgsm", "sat"]}, experiment=told)
    (journal.folder / "study.yaml").write_text(fixed.to_yaml())
    with pytest.raises(InvalidInput, match="trial-0000-seed1 was begun with 512"):
        check_defaults(read_study(journal.folder), open_study_folder(journal.folder))


def test_a_broken_line_is_named_every_time_and_nothing_is_read_past_it(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    propose(journal, 0)
    file = journal.folder / JOURNAL_FILE
    whole = file.read_text()
    for broken in ("{torn\n", "[]\n", '{"no": "event"}\n', '{"event": "proposed", "trial": 1}\n'):
        file.write_text(whole + broken + whole)
        looking = Journal(journal.folder)
        for look in (looking.runs, looking.events):
            with pytest.raises(InvalidInput, match=rf"{JOURNAL_FILE}, event 2: can't be read"):
                look()
    file.write_bytes(whole.encode() + b"\xff\n")
    with pytest.raises(InvalidInput, match=JOURNAL_FILE):
        Journal(journal.folder).runs()


@pytest.mark.parametrize("content", ["", '{"protocol": {"data"', "[]", "{}", '{"protocol": {}, "flags": []}', "\udcff"])
def test_an_evaluation_that_is_torn_is_named_with_its_file(content: str, tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    file = propose(journal, 0) / EVALUATION_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(content.encode(errors="surrogateescape"))
    for _ in range(2):
        with pytest.raises(
            InvalidInput, match=r"trials/0000/evaluation\.json: can't be read .*; restore it, or remove"
        ):
            journal.runs()
    file.unlink()
    assert journal.runs()[0].evaluation is None


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_an_identity_that_is_lost_is_named_with_its_file(content: str | None, tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    file = journal.folder / "study.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(InvalidInput, match=r"study\.json: can't be read"):
        _ = read_identity(journal.folder)


def test_every_event_comes_back_as_it_was_written() -> None:
    issued = {"key": "trial-0000", "trial": 0, "values": {"method.name": "sat"}, "experiment": {}, "folder": "t/0"}
    written = [
        events.Started(pid=1, environment={"git_commit": "aaaa"}),
        events.Joined(cluster="head", job="01000000"),
        events.Interrupted(),
        events.Finished(time=3.5),
        events.Proposed(
            **issued, origin={"kind": "prefix", "source": "trial-0001", "epochs": 3}, kind="trial", seeds=2
        ),
        events.Confirming(**issued, origin=None),
        events.Compared(key="trial-0000", group="sat, bracket 0", epoch=3, value=0.25),
        events.Stopped(key="trial-0000", rule="prune", epoch=3, reason="behind"),
        events.Ended(key="trial-0000", state="stopped", reason="behind", objectives=[0.5]),
        events.Evaluated(key="trial-0000", problem=""),
        events.RungClimbed(attack="cw", samples=9, fast=True, accuracies=[[0, 0.5]], kept=[0]),
    ]
    assert {type(event) for event in written} == set(events.EVENTS.values())
    assert [events.from_line(events.to_line(event)) for event in written] == written


def test_a_study_that_compares_folders_of_data_is_started_again(tmp_path: Path) -> None:
    study = study_with(space={"data.directory": ["/clean", "/filtered"]})
    first = create_study_folder(tmp_path / "s", study)
    again = create_study_folder(tmp_path / "s", study)
    assert read_identity(again.folder) == read_identity(first.folder)
