"""What MLflow is told of a study that no epoch says: with what it ran, how it ended, what its ladder found."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as TrackedRun

from orchestrator.host import environment
from orchestrator.records import events
from orchestrator.records.events import Evaluated
from orchestrator.records.journal import Journal
from orchestrator.records.runs import trial_key
from orchestrator.records.study_folder import create_study_folder, read_identity
from orchestrator.report.page import write_report
from orchestrator.tracking.mirror import Mirror, sync
from orchestrator.tracking.server import RUN_TAG
from search_spaces.study import parse_study
from tests.orchestrator.made_up import end_run, record
from trainers.records import append_record

STUDY = parse_study({"name": "s", "experiment": {"evaluation": {"epsilon": 0.1}}})


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A study of two trials that have ended."""
    journal = create_study_folder(tmp_path / "s", STUDY)
    start(journal, "aaaa")
    for number in (0, 1):
        propose(journal, number)
        end_run(journal, trial_key(number), "complete", "", [0.9, 0.5])
    return journal


def start(journal: Journal, commit: str) -> None:
    journal.append(events.Started(pid=1, environment={"git_commit": commit}))


def propose(journal: Journal, number: int) -> None:
    journal.propose(number, {}, STUDY.experiment_for({"seed": number}), folder=journal.trial_folder(number))


def tracked(uri: str, journal: Journal, key: str = "") -> tuple[MlflowClient, TrackedRun]:
    """A run of the study, or its parent."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(STUDY.tracking.experiment)
    identity = f"{read_identity(journal.folder)}/{key}" if key else read_identity(journal.folder)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{identity}'")
    return client, run


def test_a_run_is_known_by_what_it_began_with_whoever_uploads_it(
    uri: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_git_commit", lambda: pytest.fail("of whoever uploads"))
    start(journal, "bbbb")
    propose(journal, 1)  # goes on
    journal.confirm(0, 1, {}, STUDY.experiment_for({"seed": 7}))
    sync(Journal(journal.folder), uri)
    for key, commit in ((trial_key(0), "aaaa"), (trial_key(1), "aaaa"), ("0000-seed1", "bbbb")):
        client, run = tracked(uri, journal, key)
        file = client.download_artifacts(run.info.run_id, "environment.json")
        assert f'"git_commit": "{commit}"' in Path(file).read_text()


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ([events.Finished], "FINISHED"),
        ([events.Interrupted], "KILLED"),
        ([], "KILLED"),
        ([events.Interrupted, events.Finished], "FINISHED"),
        ([events.Finished, events.Interrupted], "KILLED"),
        ([events.Finished, None], "KILLED"),  # killed in its second start, without a word
    ],
)
def test_the_last_start_of_a_study_says_how_it_ended(
    ends: list[type[events.Event] | None], status: str, uri: str, journal: Journal
) -> None:
    journal.confirm(0, 1, {}, STUDY.experiment_for({"seed": 7}))  # it is not wanted any more, so it never ends
    for place, end in enumerate(ends):
        if place:
            start(journal, "bbbb")
        if end is not None:
            journal.append(end())
    journal.append(Evaluated(key=trial_key(0), problem=""))
    sync(journal, uri)
    assert tracked(uri, journal)[1].info.status == status


def test_a_run_whose_data_have_moved_goes_on_in_the_run_of_mlflow_that_it_has(uri: str, journal: Journal) -> None:
    key, folder = trial_key(2), journal.trial_folder(2)
    for directory, epochs in (("/old", (0, 1)), ("/new", (2, 3))):
        experiment = STUDY.experiment_for({"data.directory": directory})
        journal.propose(2, {}, experiment, folder=folder)
        append_record(folder, *(record(epoch, None, 0.2) for epoch in epochs))
        Mirror(Journal(journal.folder), uri).update(ended=False)
    client, run = tracked(uri, journal, key)
    assert (run.data.params["data.directory"], run.data.tags["data.directory"]) == ("/old", "/new")
    history = client.get_metric_history(run.info.run_id, "val/pgd10_accuracy")
    assert [metric.step for metric in history] == [0, 1, 2, 3]


def test_a_run_whose_records_have_a_gap_has_no_onset_by_place(uri: str, journal: Journal) -> None:
    folder = journal.trial_folder(2)
    propose(journal, 2)
    append_record(folder, *(record(epoch, 5, 0.2) for epoch in (0, 1, 3, 4, 5, 6)))
    end_run(journal, trial_key(2), "complete", "", [0.9, 0.5])
    Mirror(journal, uri).update(ended=False)
    _, run = tracked(uri, journal, trial_key(2))
    assert run.info.status == "FINISHED"
    assert not [name for name in run.data.metrics | run.data.tags if name.startswith("overfitting")]


def test_rungs_with_one_attack_have_a_metric_each(uri: str, journal: Journal) -> None:
    for samples, fast, accuracy in ((128, False, 0.5), (1000, False, 0.41), (1000, True, 0.43)):
        found = [(0, accuracy), (1, 0.1)]
        journal.append(events.RungClimbed(attack="pgd20,cw", samples=samples, fast=fast, accuracies=found, kept=[0]))
    sync(journal, uri)
    client, run = tracked(uri, journal, trial_key(0))
    for name, accuracy in (("n128", 0.5), ("n1000", 0.41), ("n1000_fast", 0.43)):
        history = client.get_metric_history(run.info.run_id, f"held_out/pgd20_cw_{name}_accuracy")
        assert [entry.value for entry in history] == [accuracy]


def test_a_finalist_that_could_not_be_attacked_is_named_with_the_reason_until_it_could(
    uri: str, journal: Journal
) -> None:
    problem, key = "RuntimeError: out of memory <b>", trial_key(1)

    def told() -> tuple[str, str]:
        sync(Journal(journal.folder), uri)
        tags = tracked(uri, journal, key)[1].data.tags
        return tags.get("not_evaluated", ""), write_report(journal).read_text()

    assert told()[0] == ""
    assert "Attacks on the finalists" not in told()[1]
    journal.append(Evaluated(key=key, problem=problem))
    tag, page = told()  # as an interruption of the rung leaves it
    assert tag == problem
    assert "Attacks on the finalists" in page
    assert f"{key} was not evaluated: RuntimeError: out of memory &lt;b&gt;" in page
    journal.append(events.RungClimbed(attack="pgd20", samples=9, fast=False, accuracies=[(0, 0.5)], kept=[0]))
    assert f"{key} was not evaluated: RuntimeError" in told()[1]
    journal.append(Evaluated(key=key, problem=""))
    tag, page = told()
    assert (tag, "was not evaluated" in page) == ("", False)
    assert "PGD-20, n = 9 [%]" in page
