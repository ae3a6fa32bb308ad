"""What a study comes to if nothing happens: the same proposals and trainings, one after the other, without Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from orchestrator.host.interrupt import Interrupt
from orchestrator.records.journal import Journal
from orchestrator.records.runs import Run, trial_key
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import create_study_folder, read_identity
from orchestrator.study.endings import judge_run
from orchestrator.study.proposals import Outcome, Proposals, open_storage
from orchestrator.study.searcher import StudySearcher
from orchestrator.tracking.server import RUN_TAG
from search_spaces.study import Study
from tests.integration.conftest import unmeasured
from tests.orchestrator.made_up import end_run
from tests.recorded import timeless
from trainers.config import Experiment
from trainers.diagnostics.overfitting import REFERENCE_DELTA_ENERGY, ROBUST_ACCURACY
from trainers.loop import fit
from trainers.ranks import Ranks
from trainers.totals import Diverged

Train = Callable[[Experiment, Path], None]


def train_here(experiment: Experiment, run_dir: Path) -> None:
    """In this process, on one thread."""
    torch.manual_seed(0)
    list(fit(experiment, run_dir, ranks=Ranks.current("cpu")))


def train_on_two_ranks(experiment: Experiment, run_dir: Path) -> None:
    """Under torchrun. Raises Diverged if the run does."""
    file = run_dir.parent / f"{run_dir.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(experiment.to_dict()))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainers", str(file)]
    result = subprocess.run(
        [sys.executable, *words, "--run-dir", str(run_dir), "--threads", "1"],
        env=unmeasured(OMP_NUM_THREADS="1"), capture_output=True, text=True,
    )  # fmt: skip
    if "error: diverged: " in result.stderr:
        raise Diverged(result.stderr.rpartition("error: diverged: ")[2])
    assert result.returncode == 0, result.stderr


def undisturbed(study: Study, folder: Path, train: Train) -> Journal:
    """The whole search of a study, from its first trial to its last."""
    runs = Runs(study, create_study_folder(folder, study))
    url, identity = storage_url(study, runs.journal.folder), read_identity(runs.journal.folder)
    searcher = StudySearcher(Proposals(study, open_storage(study, url, identity, None)), runs, study.search.seeds)
    while isinstance(job := searcher.suggest("only"), dict):
        report = {}
        try:
            train(runs.experiments[job["number"]], Path(job["run_dir"]))
        except Diverged as error:
            report = {"failure": str(error)}
        searcher.ended("only", report)
    return runs.journal


def meanwhile(study: Study, folder: Path, train: Train) -> Future[Journal]:
    """`undisturbed` while the study is shaken, which waits for recoveries most of the time."""
    thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))  # a number of each thread's own
    reference = thread.submit(undisturbed, study, folder, train)
    thread.shutdown(wait=False)
    return reference


class Runs:
    """Trials of one seed that nothing stops and nothing shortens."""

    def __init__(self, study: Study, journal: Journal) -> None:
        self.study, self.journal = study, journal
        self.experiments: dict[int, Experiment] = {}

    def propose(self, number: int, seed: int, values: Mapping[str, Any]) -> dict[str, Any]:
        self.experiments[number] = self.study.experiment_for(values)
        folder = self.journal.trial_folder(number)
        self.journal.propose(number, values, self.experiments[number], folder=folder)
        return {"number": number, "run_dir": str(folder)}

    def decided(self, number: int, seed: int) -> Outcome | None:
        return None

    def epochs(self, number: int, seed: int) -> int:
        return 0

    def judge(self, number: int, seed: int, report: Mapping[str, Any]) -> Outcome | None:
        run_dir = self.journal.trial_folder(number)
        return judge_run(report, self.experiments[number], run_dir, self.study, Interrupt(print))

    def ended(self, number: int, seed: int, outcome: Outcome) -> None:
        end_run(self.journal, trial_key(number), outcome.state, outcome.reason, list(outcome.objectives))

    def conclude(self, number: int, outcomes: Sequence[Outcome]) -> Outcome:
        return outcomes[0]


def assert_same_optuna_trials(study: Study, ours: Journal, theirs: Journal) -> None:
    """Numbers, states, parameters and values."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    here, there = (
        optuna.load_study(study_name=study.name, storage=storage_url(study, journal.folder)).trials
        for journal in (ours, theirs)
    )
    assert [t.number for t in here] == list(range(study.search.trials))
    for one, other in zip(here, there, strict=True):
        assert (one.state, one.params, one.values) == (other.state, other.params, other.values), one.number


def assert_same_run(ours: Run, theirs: Run) -> None:
    """How it ended, every metric of every epoch but the clocks, and every weight of what is kept."""
    assert (ours.key, ours.state, ours.objectives) == (theirs.key, theirs.state, theirs.objectives)
    assert ours.experiment.digest() == theirs.experiment.digest()
    assert_same_epochs(ours, theirs)
    if theirs.state == "complete":
        newest = f"epoch_{theirs.experiment.epochs - 1:04d}"
        for name in ("best", newest):
            here, there = (load_file(run.folder / "checkpoints" / name / "model.safetensors") for run in (ours, theirs))
            assert here.keys() == there.keys()
            assert all(torch.equal(here[key], there[key]) for key in there), f"weights of {ours.key}, {name}"


def assert_same_epochs(ours: Run, theirs: Run) -> None:
    """Every metric of the epochs that `ours` has, the clocks aside."""
    assert [record.epoch for record in ours.records] == list(range(len(ours.records)))
    assert timeless(ours.records) == timeless(theirs.records[: len(ours.records)]), ours.key


def tracked_epochs(client: MlflowClient, journal: Journal, key: str, metric: str = ROBUST_ACCURACY) -> list[int]:
    """Every epoch that MLflow holds of one metric of the run with this key, doubled ones and all."""
    (run,) = _tracked(client, f"tags.`{RUN_TAG}` = '{read_identity(journal.folder)}/{key}'")
    return sorted(entry.step for entry in client.get_metric_history(run.info.run_id, metric))


def assert_tracked_once(client: MlflowClient, journal: Journal) -> None:
    """One run in MLflow for the study and for each of its runs, closed, each epoch of several metrics once."""
    tracked = {run.data.tags[RUN_TAG]: run for run in _tracked(client, "")}
    assert len(tracked) == len(_tracked(client, "")) == 1 + len(journal.runs())
    assert tracked[read_identity(journal.folder)].info.status == "FINISHED"
    for trial in journal.runs():
        run = tracked[f"{read_identity(journal.folder)}/{trial.key}"]
        assert run.info.status == {"complete": "FINISHED", "failed": "FAILED"}[trial.state]
        assert float(run.data.params["attack.epsilon"]) == trial.experiment.attack.epsilon
        for metric in (ROBUST_ACCURACY, "train/loss", REFERENCE_DELTA_ENERGY):
            assert tracked_epochs(client, journal, trial.key, metric) == [record.epoch for record in trial.records]


def _tracked(client: MlflowClient, which: str) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name("adversarial-training").experiment_id], which))
