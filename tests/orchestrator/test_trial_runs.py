"""What a study need not compute, shared beginnings, twins, runs of other studies; and what seeds come to. No Tune."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from rich.console import Console

from orchestrator.records.constraints import feasible
from orchestrator.records.journal import Journal
from orchestrator.records.runs import Run, trial_key
from orchestrator.records.savings import savings
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import create_study_folder, read_identity, read_study
from orchestrator.records.trials import trials
from orchestrator.report.tables import trial_rows
from orchestrator.study.confirm import distinct, ranked
from orchestrator.study.progress import StudyView
from search_spaces.study import Study, parse_study
from tests.conftest import TINY
from tests.orchestrator.made_up import end_run, propose_run
from tests.recorded import timeless
from trainers import checkpoint
from trainers.config import apply_values
from trainers.loop import fit
from trainers.origin import Origin, read_origin
from trainers.ranks import Ranks
from trainers.records import EpochRecord, append_record

EPOCHS, START = 4, 2
DROP = "evaluation.catastrophic.accuracy_drop"
BASE = apply_values(
    TINY,
    {"optimizer.learning_rate": 0.2, "optimizer.batch_size": 32, "attack.steps": 1, "attack.epsilon": 0.1}
    | {"epochs": EPOCHS, "evaluation.epsilon": 0.1, "method": "sat"},
)
SPACE = {
    "method.name": ["sat", "sat_der"],
    "method.regularizer.start": {"choices": [START / EPOCHS], "when": {"method.name": "sat_der"}},
    "method.regularizer.beta": {"low": 0.1, "high": 4, "log": True, "when": {"method.name": "sat_der"}},
    DROP: [0.01, 0.5, 0.99],
}
SAT, DER, STRONG = (
    {"method.name": "sat"},
    {"method.name": "sat_der", "method.regularizer.beta": 1.0},
    {"method.name": "sat_der", "method.regularizer.beta": 4.0},
)
NEVER, OFTEN = {DROP: 0.01}, {DROP: 0.99}


def study(name: str, *points: dict[str, Any], **sections: Any) -> Study:
    search = {"sampler": "random", "trials": len(points), "start": points, **sections.pop("search", {})}
    return parse_study({"name": name, "experiment": BASE, "space": SPACE, "search": search, **sections})


def run_here(of: Study, root: Path, *, kill_after: int | None = None) -> Journal:
    """Every trial in this process, as a slot would run it; with `kill_after`, only so many epochs in all."""
    from orchestrator.host.interrupt import Interrupt
    from orchestrator.slots.slot import run_job
    from orchestrator.study.early_stopping import StopDecisions
    from orchestrator.study.proposals import Proposals, open_storage
    from orchestrator.study.searcher import StudySearcher
    from orchestrator.study.session import Session
    from orchestrator.study.trial_runs import TrialRuns

    journal = create_study_folder(root / of.name, of)
    stopping = StopDecisions(of.search.stop, journal)
    session = Session(of, journal, None, StudyView(Console(quiet=True)), Interrupt(print))  # type: ignore[arg-type]
    stored = open_storage(of, storage_url(of, journal.folder), read_identity(journal.folder), None)
    searcher = StudySearcher(Proposals(of, stored), TrialRuns(session, stopping), of.search.seeds)
    epochs = 0
    while isinstance(job := searcher.suggest("only"), dict):
        for _ in run_job(job):
            epochs += 1
            (run,) = (run for run in journal.runs() if run.key == job["key"])
            if epochs == kill_after:
                return journal
            if stopping.decide(run.key, run.experiment, run.records) is not None:
                break
        searcher.ended("only", {})
        session.interrupt.check()
    return journal


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Each run by its digest as it is without a study."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for point in (SAT, DER, STRONG):
        experiment = study("alone", point | NEVER).experiment_for(point | NEVER | _start(point))
        run_dir = folder / experiment.digest()
        records = tuple(fit(experiment, run_dir, ranks=Ranks.current("cpu")))
        found[experiment.digest()] = Run("", "trial", 0, {}, experiment, run_dir, records=records)
    return found


def _start(point: dict[str, Any]) -> dict[str, Any]:
    return {"method.regularizer.start": START / EPOCHS} if point["method.name"] == "sat_der" else {}


def assert_as_alone(run: Run, alone: dict[str, Run]) -> None:
    expected = alone[run.experiment.digest()]
    assert timeless(run.records) == timeless(expected.records)
    for folder in (checkpoint.best_folder, lambda run_dir: checkpoint.epoch_folder(run_dir, EPOCHS - 1)):
        here, there = (checkpoint.load(folder(run_dir)) for run_dir in (run.folder, expected.folder))
        assert here.experiment.digest() == run.experiment.digest()
        assert here.record.epoch == there.record.epoch
        assert all(torch.equal(here.weights()[name], weight) for name, weight in there.weights().items())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    """Three trials of one beginning, whose driver died twice: before the prefix was there, and in a branched trial."""
    root = tmp_path_factory.mktemp("runs")
    of = study("shared", DER | NEVER, STRONG | NEVER, SAT | NEVER, DER | {DROP: 0.5}, search={"share_prefix": True})
    run_here(of, root, kill_after=1)
    run_here(of, root, kill_after=4)
    return run_here(of, root)


def test_branched_trials_equal_whole_ones_bit_for_bit_also_after_kills(shared: Journal, alone: dict[str, Run]) -> None:
    runs = shared.runs()
    assert [run.state for run in runs] == ["complete"] * 4
    for run in runs:
        assert_as_alone(run, alone)


def test_every_trial_says_where_it_began(shared: Journal) -> None:
    prefix, twin = Origin("prefix", "trial-0000", START), Origin("twin", "trial-0000", EPOCHS)
    first, *others = shared.runs()
    assert [run.origin for run in (first, *others)] == [None, prefix, prefix, twin]
    assert [read_origin(run.folder) for run in others[:2]] == [prefix, prefix]
    assert others[2].folder == first.folder
    assert first.records[:START] == others[0].records[:START] == others[1].records[:START]


def test_what_was_shared_is_counted_as_saved(shared: Journal) -> None:
    runs = shared.runs()
    seconds = [record.metrics["epoch/seconds"] for record in runs[0].records]
    prefix, twin = savings(runs, read_study(shared.folder))
    assert (prefix.runs, prefix.epochs, prefix.of_epochs) == (2, 2 * START, 4 * EPOCHS)
    assert prefix.seconds == pytest.approx(2 * sum(seconds[:START]))
    assert (twin.how, twin.epochs) == ("Not trained twice", EPOCHS)
    assert twin.seconds == pytest.approx(sum(seconds))
    assert str(prefix).startswith("Begun from a shared prefix: 2 runs; 4 of 16 epochs and ")


def test_without_being_asked_nothing_is_shared(tmp_path: Path) -> None:
    journal = run_here(study("plain", DER | NEVER, STRONG | NEVER), tmp_path)
    assert [run.origin for run in journal.runs()] == [None, None]
    assert not (journal.folder / "prefixes").exists()


def unstable(name: str, *points: dict[str, Any], **search: Any) -> dict[str, Any]:
    """A study of runs that lose robust accuracy in some epoch, as it would stand in a file."""
    raw = study(name, *points, search=search).to_raw()
    raw["experiment"] = apply_values(raw["experiment"], {"evaluation.catastrophic.above_chance": 0})
    raw["experiment"]["optimizer"]["learning_rate"] = 3.0
    return raw


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    """A trial that is stopped, the same run where nothing stops it, and the first one again."""
    raw = unstable("stopped", SAT | OFTEN, SAT | NEVER, stop={"catastrophic": True})
    raw["space"]["data.download"] = [False, True]  # not in the digest: another point of the same run
    raw["search"]["start"] = [point | {"data.download": now} for point, now in (
        (SAT | OFTEN, False), (SAT | NEVER, False), (SAT | OFTEN, True),
    )]  # fmt: skip
    raw["search"]["trials"] = 3
    return run_here(parse_study(raw), tmp_path_factory.mktemp("runs"))


def test_a_twin_of_a_stopped_trial_is_stopped_with_it_and_not_trained(stopped: Journal) -> None:
    first, other, twin = stopped.runs()
    assert [run.state for run in (first, other, twin)] == ["stopped", "complete", "stopped"]
    assert 1 < len(first.records) < EPOCHS
    assert (twin.folder, twin.reason, twin.objectives) == (first.folder, first.reason, first.objectives)
    assert twin.own_records == ()
    assert (twin.stopped_by, twin.stopped_after) == (first.stopped_by, first.stopped_after)
    assert (first.stopped_by, first.stopped_after) == ("catastrophic", len(first.records) - 1)
    states = [
        trial.state.name
        for trial in optuna.load_study(
            study_name="stopped", storage=storage_url(read_study(stopped.folder), stopped.folder)
        ).trials
    ]
    assert states == ["PRUNED", "COMPLETE", "PRUNED"]
    rule, twins = savings(stopped.runs(), read_study(stopped.folder))
    assert (rule.runs, rule.epochs) == (1, EPOCHS - len(first.records))
    assert (twins.runs, twins.epochs) == (1, len(first.records))


def test_a_stopped_trial_lends_nothing_to_the_same_run_under_other_thresholds(stopped: Journal) -> None:
    first, other, _ = stopped.runs()
    assert first.experiment.digest() == other.experiment.digest()
    assert (other.folder, other.origin, len(other.records)) == (stopped.trial_folder(1), None, EPOCHS)


def test_a_run_that_another_study_finished_is_taken_over_if_its_checkpoints_are_whole(
    shared: Journal, alone: dict[str, Run], tmp_path: Path
) -> None:
    import shutil

    root = tmp_path / "runs"
    shutil.copytree(shared.folder, root / "shared")
    points = (DER | NEVER, STRONG | NEVER)
    of = study("again", *points, search={"reuse": True})
    weights = checkpoint.best_folder(root / "shared" / "trials" / "0001") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    journal = run_here(of, root)
    first, second = journal.runs()
    assert first.origin == read_origin(first.folder) == Origin("study", "shared/trials/0000", EPOCHS)
    assert (first.own_records, second.origin) == ((), None)
    for run in (first, second):
        assert run.state == "complete"
        assert_as_alone(run, alone)
    # It stands on its own now, and only runs of the same number of workers are one.
    shutil.rmtree(root / "shared")
    assert_as_alone(journal.runs()[0], alone)
    of = study("two", *points, search={"reuse": True}, resources={"workers": 2})
    from orchestrator.study.beginnings import Beginnings

    assert (
        Beginnings(of, create_study_folder(root / "two", of), of.resources).begin(first.experiment, root / "run")
        is None
    )
    assert checkpoint.latest(root / "run") is None


def test_of_runs_of_other_studies_only_the_new_ones_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.study.beginnings import Beginnings

    def begun(number: int, digest: str) -> Path:
        folder = tmp_path / "other" / "trials" / f"{number:04d}"
        folder.mkdir(parents=True)
        (folder / "hardware.json").write_text('["1-workers-cpu"]')
        (folder / "digest.json").write_text(f'{{"digest": "{digest}"}}')
        return folder

    of = study("mine", SAT, search={"reuse": True})
    beginnings = Beginnings(of, create_study_folder(tmp_path / "mine", of), of.resources)
    first = [begun(number, "a" if number % 10 else "b") for number in range(40)]
    (tmp_path / "other" / "study.json").write_text("{}")
    assert beginnings._finished_elsewhere("b") == first[::10]
    touched: list[str] = []
    stat, read = os.stat, Path.read_text
    monkeypatch.setattr(os, "stat", lambda path, **how: touched.append(str(path)) or stat(path, **how))
    monkeypatch.setattr(Path, "read_text", lambda path, *how: touched.append(str(path)) or read(path, *how))
    late = tmp_path / "other" / "trials" / "0041"
    late.mkdir()  # its digest is not there yet
    added = begun(40, "b")
    assert beginnings._finished_elsewhere("b") == [*first[::10], added]
    assert not [path for path in touched for number in (1, 11, 39) if str(first[number]) in path]
    (late / "digest.json").write_text('{"digest": "c"}')
    (late / "hardware.json").write_text('["1-workers-cpu"]')
    assert beginnings._finished_elsewhere("c") == [late]
    assert beginnings._finished_elsewhere("d") == []
    broken = begun(42, "d")
    (broken / "digest.json").write_text("")  # as a power cut may leave it: the other study's matter
    assert beginnings._finished_elsewhere("d") == []
    (broken / "digest.json").write_text('{"digest": "d"}')
    assert beginnings._finished_elsewhere("d") == [broken]


@pytest.mark.parametrize("count", ["best", "last"])
def test_a_run_that_is_taken_over_is_judged_as_if_it_had_run_here(count: str, stopped: Journal, tmp_path: Path) -> None:
    free = run_here(parse_study(unstable("free", SAT | NEVER, checkpoint=count)), tmp_path)
    assert [(run.state, len(run.records)) for run in free.runs()] == [("complete", EPOCHS)]
    rules = {"checkpoint": count, "stop": {"catastrophic": True}, "reuse": True}
    (run,) = run_here(parse_study(unstable("judged", SAT | OFTEN, **rules)), tmp_path).runs()
    first = stopped.runs()[0]
    assert run.origin == Origin("study", "free/trials/0000", EPOCHS)
    assert (run.state, run.stopped_after, run.reason) == ("stopped", first.stopped_after, first.reason)
    assert run.objectives == (first.objectives if count == "best" else ())


def test_a_run_that_went_on_with_other_resources_lends_nothing(tmp_path: Path) -> None:
    two = {"resources": {"workers": 2}, "search": {"share_prefix": True}}
    run_here(study("mixed", DER | NEVER, **two), tmp_path, kill_after=1)
    (mixed,) = run_here(study("mixed", DER | NEVER, search={"share_prefix": True}), tmp_path).runs()
    assert (mixed.state, len(mixed.records)) == ("complete", EPOCHS)
    assert not (tmp_path / "mixed" / "prefixes").exists()
    for name, workers in (("one", 1), ("two", 2)):
        of = study(name, DER | NEVER, search={"reuse": True}, resources={"workers": workers})
        (run,) = run_here(of, tmp_path).runs()
        assert (run.state, run.origin) == ("complete", None)


def test_runs_on_images_that_are_known_by_their_file_alone_are_not_taken_over(tmp_path: Path) -> None:
    from orchestrator.study.beginnings import Beginnings

    file = tmp_path / "generated.npz"
    np.savez(file, image=np.zeros((20, 8, 8, 1), np.uint8), label=np.arange(20) % 10)
    raw = study("before", SAT | NEVER, search={"reuse": True}).to_raw()
    raw["experiment"] |= {"data": BASE["data"] | {"extra": str(file), "extra_fraction": 0.5}, "epochs": 1}
    (run,) = run_here(parse_study(raw), tmp_path / "runs").runs()
    np.savez(file, image=np.ones((20, 8, 8, 1), np.uint8), label=np.arange(20) % 10)
    of = parse_study(raw | {"name": "after"})
    after = Beginnings(of, create_study_folder(tmp_path / "runs" / "after", of), of.resources)
    assert of.experiment_for(SAT | NEVER).digest() == run.experiment.digest()
    assert after.begin(run.experiment, tmp_path / "runs" / "after" / "trials" / "0000") is None


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    """Two trials of three seeds; the driver died in the second seed of the first."""
    root = tmp_path_factory.mktemp("runs")
    of = study("seeded", SAT | NEVER, DER | NEVER, search={"seeds": 3, "share_prefix": True})
    run_here(of, root, kill_after=EPOCHS + 1)
    return run_here(of, root)


def test_objectives_of_a_trial_are_means_over_its_seeds_for_optuna_and_for_readers(seeded: Journal) -> None:
    stored = optuna.load_study(
        study_name="seeded", storage=storage_url(read_study(seeded.folder), seeded.folder)
    ).trials
    for trial, of_optuna, row in zip(
        trials(seeded.runs()), stored, trial_rows(read_study(seeded.folder), seeded.runs()), strict=True
    ):
        runs = [run for run in seeded.runs() if run.trial == trial.number]
        assert [run.experiment.seed for run in runs] == [0, 1, 2]
        assert len({run.experiment.digest() for run in runs}) == 3
        for place, name in enumerate(read_study(seeded.folder).search.objectives):
            each = [run.objectives[place] for run in runs]
            best = [max(run.records, key=lambda r: r.metrics["val/pgd10_accuracy"]).metrics[name] for run in runs]
            assert each == best
            assert trial.objectives[place] == of_optuna.values[place] == pytest.approx(mean(each))
            assert row.objectives[name].deviation == pytest.approx(stdev(each))
        assert row.epochs == row.planned_epochs == 3 * EPOCHS


def test_optuna_sees_a_trial_of_which_one_seed_was_stopped_by_the_mean_of_all_seeds(tmp_path: Path) -> None:
    from orchestrator.host.interrupt import Interrupt
    from orchestrator.study.early_stopping import StopDecisions
    from orchestrator.study.proposals import Outcome
    from orchestrator.study.session import Session
    from orchestrator.study.trial_runs import TrialRuns

    of = study("half", SAT | NEVER, search={"seeds": 2, "objectives": ["val/pgd10_accuracy"]})
    journal = create_study_folder(tmp_path / "half", of)
    for seed, (state, values) in enumerate([("complete", (0.2, 0.4, 0.6, 0.5)), ("stopped", (0.4, 0.0))]):
        folder = propose_run(journal, 0, {}, of.experiment_for(SAT | NEVER), seed=seed, seeds=2)
        records = (EpochRecord(epoch, 0.0, {"val/pgd10_accuracy": value}) for epoch, value in enumerate(values))
        append_record(folder, *records)
        end_run(journal, trial_key(0, seed), state, "", [max(values)])
    session = Session(of, journal, None, StudyView(Console(quiet=True)), Interrupt(print))  # type: ignore[arg-type]
    ended = [Outcome("complete", "", (0.6,)), Outcome("stopped", "collapsed", (0.4,), (0.4, 0.0))]
    told = TrialRuns(session, StopDecisions(of.search.stop, journal)).conclude(0, ended)
    assert (told.state, told.objectives) == ("stopped", (0.5,))
    assert told.curve == pytest.approx((0.3, 0.2))


def test_seeds_share_prefixes_with_the_same_seed_of_other_trials(seeded: Journal) -> None:
    origins = {run.key: run.origin for run in seeded.runs()}
    for seed, suffix in enumerate(("", "-seed1", "-seed2")):
        assert origins[f"trial-0000{suffix}"] is None, seed
        assert origins[f"trial-0001{suffix}"] == Origin("prefix", f"trial-0000{suffix}", START)


def test_the_best_mean_is_chosen(seeded: Journal) -> None:
    chosen = ranked(distinct(feasible(read_study(seeded.folder), seeded.runs())))
    assert len(chosen) == 2
    assert sum(chosen[0].objectives) == max(sum(trial.objectives) for trial in trials(seeded.runs()))
