"""Finalists are attacked on held-out images, harder and harder; who falls behind is not attacked again or confirmed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console

from orchestrator.cluster import connection
from orchestrator.host.interrupt import Interrupt
from orchestrator.records.events import RungClimbed
from orchestrator.records.journal import Journal
from orchestrator.records.rungs import climbed
from orchestrator.records.runs import trial_key
from orchestrator.records.study_folder import create_study_folder, read_identity
from orchestrator.records.trials import trials
from orchestrator.report.page import write_report
from orchestrator.study.ladder import climb, climb_of
from orchestrator.study.progress import StudyView
from orchestrator.study.session import Session
from orchestrator.tracking.mirror import sync
from orchestrator.tracking.server import RUN_TAG
from search_spaces.study import Rung, parse_study
from tests.conftest import TINY
from tests.orchestrator.made_up import end_run, propose_run
from trainers import checkpoint
from trainers.config import apply_values
from trainers.data.images import load_splits
from trainers.evaluation.ranges import evaluate_range, fixed_subset
from trainers.evaluation.result import EXACT, FAST, Protocol
from trainers.loop import fit
from trainers.ranks import Ranks

RUNGS = [{"attack": "pgd20", "samples": 30, "keep": 2, "fast": True}, {"attack": "margin-t", "samples": 50, "keep": 1}]
STUDY = parse_study(
    {
        "name": "s",
        "experiment": apply_values(TINY, {"optimizer.learning_rate": 0.2, "epochs": 2, "evaluation.epsilon": 0.03}),
        "space": {"attack.epsilon": [0.01, 0.05, 0.2]},
        "confirm": {"top": 1, "ladder": RUNGS, "shard": 20, "batch_size": 20},
    }
)


def test_the_most_robust_are_kept_and_of_equals_the_first_in_the_order_of_the_search() -> None:
    found = climb_of(Rung(attack="cw", samples=9, keep=2), {5: 0.2, 3: 0.5, 1: 0.5})
    assert (found.attack, found.samples, found.fast, found.kept) == ("cw", 9, False, [3, 1])
    assert found.accuracies == [(3, 0.5), (1, 0.5), (5, 0.2)]


def test_a_rung_that_kept_more_later_is_one_rung() -> None:
    event = RungClimbed(attack="cw", samples=9, fast=False, accuracies=[(3, 0.5), (1, 0.4)], kept=[3])
    found = climbed([event, replace(event, attack="pgd20"), replace(event, kept=[3, 1])])
    assert [(rung.attack, rung.kept) for rung in found.values()] == [("cw", [3, 1]), ("pgd20", [3])]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    journal = create_study_folder(tmp_path_factory.mktemp("runs") / "s", STUDY)
    for number, epsilon in enumerate((0.01, 0.05, 0.2)):
        experiment = STUDY.experiment_for({"attack.epsilon": epsilon})
        folder = propose_run(journal, number, {"attack.epsilon": epsilon}, experiment)
        list(fit(experiment, folder, ranks=Ranks.current("cpu")))
        end_run(journal, trial_key(number), "complete", "", [0.5, 0.5])
    return journal


def expected(journal: Journal, number: int, attack: str, samples: int, precision: str = EXACT) -> float:
    """The same attack on the same images here, in one piece for each shard."""
    opened = checkpoint.load(checkpoint.best_folder(journal.trial_folder(number)))
    images = fixed_subset(load_splits(opened.experiment.data).validation, samples)
    protocol = Protocol(
        "", "", samples, "0.03", attack, seed=0, shard=20, batch_size=20, checkpoint="best", precision=precision
    )
    parts = [evaluate_range(opened.load_model(), images, protocol, *bounds) for bounds in protocol.ranges()]
    return sum(sum(part.standing[attack]) for part in parts) / samples


@pytest.mark.ray
def test_every_rung_attacks_those_that_are_left_and_is_climbed_once(journal: Journal) -> None:
    torch.set_num_threads(1)
    with connection.connect(None, trial_slots=1) as capacity:
        session = Session(STUDY, journal, capacity, StudyView(Console(quiet=True)), Interrupt(print))
        left = climb(session, trials(journal.runs()))
    first, second = climbed(journal.events()).values()
    assert first.by_trial == {number: expected(journal, number, "pgd20", 30, FAST) for number in (0, 1, 2)}
    assert second.by_trial == {number: expected(journal, number, "margin-t", 50) for number in first.kept}
    best = sorted(first.by_trial.values(), reverse=True)
    assert [first.by_trial[number] for number in first.kept] == best[:2]
    assert [trial.number for trial in left] == list(second.kept)
    assert second.by_trial[second.kept[0]] == max(second.by_trial.values())
    assert all(run.evaluation is None for run in journal.runs())  # the test set was not touched
    # Again, without Ray: nothing is left to do.
    again = Session(STUDY, Journal(journal.folder), capacity, StudyView(Console(quiet=True)), Interrupt(print))
    assert climb(again, trials(journal.runs())) == left
    assert len(climbed(journal.events())) == 2
    page = write_report(journal).read_text()
    assert "PGD-20 (fast), n = 30 [%]" in page
    assert "Margin-T, n = 50 [%]" in page
    assert f"<strong>{100 * second.by_trial[second.kept[0]]:.2f}</strong>" in page
    uri = f"sqlite:///{journal.folder}/mlflow.db"
    sync(journal, uri)
    client = MlflowClient(tracking_uri=uri)
    for number, accuracy in second.by_trial.items():
        (run,) = client.search_runs(["1"], f"tags.`{RUN_TAG}` = '{read_identity(journal.folder)}/{trial_key(number)}'")
        assert run.data.metrics["held_out/margin-t_n50_accuracy"] == accuracy


def test_more_are_kept_where_more_are_to_be_confirmed_and_nobody_is_attacked_again(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    for number in range(4):
        experiment = STUDY.experiment_for({"attack.epsilon": 0.05}).with_seed(number)
        propose_run(journal, number, {}, experiment)
        end_run(journal, trial_key(number), "complete", "", [0.5, 0.5])
    accuracies = [(2, 0.4), (0, 0.3), (3, 0.2), (1, 0.1)]
    journal.append(RungClimbed(attack="pgd20", samples=30, fast=True, accuracies=accuracies, kept=[2, 0]))
    more = STUDY.confirm.model_copy(update={"ladder": STUDY.confirm.ladder_for(3)})
    study = STUDY.model_copy(update={"confirm": more})
    session = Session(study, journal, None, StudyView(Console(quiet=True)), Interrupt(print))  # type: ignore[arg-type]
    for _ in range(2):
        assert [trial.number for trial in climb(session, trials(journal.runs()))] == [2, 0, 3]
    assert [event.kept for event in journal.events() if isinstance(event, RungClimbed)] == [[2, 0], [2, 0, 3]]


def test_the_ladder_of_more_finalists_keeps_as_many_and_has_no_rung_for_nothing() -> None:
    confirm = parse_study({"name": "s", "confirm": {"top": 1, "ladder": [
        {"attack": name, "samples": 9, "keep": keep} for name, keep in (("pgd20", 8), ("cw", 4), ("margin-t", 2))
    ]}}).confirm  # fmt: skip
    kept = {top: [(rung.attack, rung.keep) for rung in confirm.ladder_for(top)] for top in (1, 3, 5, 9)}
    assert kept[1] == [("pgd20", 8), ("cw", 4), ("margin-t", 2)]
    assert kept[3] == [("pgd20", 8), ("cw", 4), ("margin-t", 3)]
    assert kept[5] == [("pgd20", 8), ("cw", 5)]
    assert kept[9] == [("pgd20", 9)]


def test_a_rung_that_would_drop_nobody_attacks_nobody(tmp_path: Path) -> None:
    journal = create_study_folder(tmp_path / "s", STUDY)
    propose_run(journal, 0, {}, STUDY.experiment_for({"attack.epsilon": 0.05}))
    session = Session(STUDY, journal, None, StudyView(Console(quiet=True)), Interrupt(print))  # type: ignore[arg-type]
    (only,) = climb(session, trials(journal.runs()))
    assert only.number == 0
    assert climbed(journal.events()) == {}
    # The next rung is climbed all the same.
    propose_run(journal, 1, {}, STUDY.experiment_for({"attack.epsilon": 0.2}))
    accuracies = [(1, 0.4), (0, 0.3)]
    journal.append(RungClimbed(attack="margin-t", samples=50, fast=False, accuracies=accuracies, kept=[1]))
    assert [trial.number for trial in climb(session, trials(journal.runs()))] == [1]
