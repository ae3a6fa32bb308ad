"""The best configurations again, with fresh seeds, then attacked on the test set, which nothing else touches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from ray.tune.search import Searcher

from orchestrator.evaluation.protocols import protocol_for
from orchestrator.records.constraints import feasible, limits
from orchestrator.records.events import Evaluated
from orchestrator.records.journal import EVALUATION_FILE, Journal
from orchestrator.records.pareto import pareto_indices
from orchestrator.records.runs import Run, confirmation_key
from orchestrator.records.trials import Trial
from orchestrator.slots.messages import Job, Report, job_for
from orchestrator.study.beginnings import Beginnings
from orchestrator.study.endings import judge_run
from orchestrator.study.evaluations import evaluate_on_ray
from orchestrator.study.ladder import climb
from orchestrator.study.proposals import Outcome
from orchestrator.study.session import Session
from orchestrator.study.tuning import run_on_slots
from search_spaces.study import Study
from trainers.config import parse
from trainers.records import read_records


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that count, the best first: by Pareto rank, then by the mean of the objectives, then by number."""
    left, order = list(trials), list[Trial]()
    while left:
        front = pareto_indices([trial.objectives for trial in left])
        order += sorted((left[place] for place in front), key=lambda trial: (-sum(trial.objectives), trial.number))
        left = [trial for place, trial in enumerate(left) if place not in front]
    return order


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that count, each experiment once, the first of its trials: equal ones may have run side by side.

    Complete ones, and stopped ones that have objectives all the same (`endings.stopped_outcome`). Confirmations of both
    run to their last epoch.
    """
    first: dict[str, Trial] = {}
    for trial in trials:
        if trial.objectives:
            first.setdefault(trial.experiment.digest(), trial)
    return list(first.values())


def confirm(session: Session, *, anew: bool) -> None:
    """Train the chosen configurations with fresh seeds and evaluate each run; finished parts are not done again.

    With `anew`, what was evaluated under other settings is evaluated again under these; its shards of before are kept.
    Without, it stays: a study that is resumed does not take back what was asked for since.
    """
    chosen = _chosen(session)
    _train(session, chosen)
    session.interrupt.check()
    _evaluate(session, {key for _, _, key in _wanted(session.study, chosen)} if anew else set())


def _chosen(session: Session) -> list[Trial]:
    """The trials to confirm, the best first: those that meet the constraints and withstand the ladder."""
    study, journal, view = session.study, session.journal, session.view
    candidates = ranked(distinct(feasible(study, journal.runs())))
    chosen = climb(session, candidates)[: study.confirm.top]
    for metric, limit in limits(study, journal.runs()).items():
        if limit is None:
            view.say(f"search.constraints.{metric} is not applied: its baseline has recorded nothing")
    if not candidates and study.search.constraints:
        view.say("no trial meets search.constraints: nothing is confirmed")
    return chosen


def _wanted(study: Study, chosen: Sequence[Trial]) -> list[tuple[Trial, int, str]]:
    """(trial, seed, key) of each confirmation. The seeds of the trials are not fresh."""
    seeds = range(study.search.seeds, study.search.seeds + study.confirm.seeds)
    return [(trial, seed, confirmation_key(trial.number, seed)) for trial in chosen for seed in seeds]


def _confirmed(journal: Journal) -> list[Run]:
    """The confirmations that are trained."""
    return [run for run in journal.runs() if run.kind == "confirmation" and run.state == "complete"]


def _train(session: Session, chosen: Sequence[Trial]) -> None:
    """Train what is not trained yet."""
    study, journal = session.study, session.journal
    finished = {run.key for run in _confirmed(journal)}
    left = [(trial, seed) for trial, seed, key in _wanted(study, chosen) if key not in finished]
    if not left:
        return
    trials, resources = ", ".join(str(trial.number) for trial in chosen), study.confirm_resources
    session.view.phase(
        f"confirming trials {trials} with {study.confirm.seeds} seeds, {resources.workers} workers each",
        runs=len(left),
        epochs=sum(trial.experiment.epochs for trial, _ in left),
    )
    beginnings = Beginnings(study, journal, resources)
    jobs = (_job(session, beginnings, trial, seed) for trial, seed in left)
    run_on_slots(session, _Jobs(jobs, session), resources, "confirm")


def _evaluate(session: Session, anew: Set[str]) -> None:
    """Attack every confirmation that has no evaluation, and those of `anew` (keys) whose evaluation is another."""
    study = session.study
    waiting = [
        (run, protocol)
        for run in _confirmed(session.journal)
        for protocol in [protocol_for(run.experiment, study.confirm, study.search.checkpoint)]
        if run.evaluation is None or (run.key in anew and run.evaluation.protocol != protocol)
    ]
    if not waiting:
        return
    attack, samples = study.confirm.attack, study.confirm.samples
    session.view.phase(f"{attack} on {samples} test images for {len(waiting)} runs")
    for run, evaluation in evaluate_on_ray(session, waiting):
        evaluation.save(run.folder / EVALUATION_FILE)
        # Whoever reads the journal looks for it then.
        session.journal.append(Evaluated(key=run.key, problem=""))


def _job(session: Session, beginnings: Beginnings, trial: Trial, seed: int) -> Job:
    """A trial again with another seed, prepared and recorded when it is about to be issued."""
    key, journal = confirmation_key(trial.number, seed), session.journal
    experiment = session.study.located(trial.experiment).with_seed(trial.experiment.seed + seed)
    folder = journal.confirmation_folder(trial.number, seed)
    origin = beginnings.begin(experiment, folder)
    journal.confirm(trial.number, seed, trial.values, experiment, origin)
    resources = session.study.confirm_resources
    return job_for(key, experiment, folder, resources, beginnings.sharing(experiment, folder))


class _Jobs:
    """Gives Tune one run after the other, made when its turn comes, and records how they end.

    One whose processes died, oftener than Tune tries again, comes again as long as there are new epochs each time.
    """

    def __init__(self, jobs: Iterable[Job], session: Session) -> None:
        self._left = iter(jobs)
        self._again: list[Job] = []
        self._running: dict[str, tuple[Job, int]] = {}
        self._session = session

    def suggest(self, trial_id: str) -> Job | str | None:
        """The next run, None for "ask again later", or FINISHED."""
        job = self._again.pop(0) if self._again else next(self._left, None)
        if job is None:
            return None if self._running else str(Searcher.FINISHED)
        self._running[trial_id] = job, _epochs(job)
        return job

    def ended(self, trial_id: str, report: Report) -> None:
        """Record how a run ended; one that was only interrupted goes on when the study does."""
        (job, epochs), session = self._running.pop(trial_id), self._session
        experiment = parse(job["experiment"])
        outcome = judge_run(report, experiment, Path(job["run_dir"]), session.study, session.interrupt)
        if outcome is None and report.get("crashed"):
            if _epochs(job) > epochs:
                self._again.append(job)
            else:
                outcome = Outcome("failed", "its processes died, again and again without a new epoch")
        if outcome is not None:
            session.journal.append(outcome.event(job["key"]))
            session.view.ended(job["key"], outcome.state, outcome.reason)


def _epochs(job: Job) -> int:
    return len(read_records(Path(job["run_dir"])))
