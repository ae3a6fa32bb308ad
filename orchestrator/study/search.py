"""The search of a study: its trials on slots until there are as many as it asks for."""

from __future__ import annotations

from orchestrator.records.database_wait import DatabaseWait
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import read_identity
from orchestrator.records.trials import trials
from orchestrator.study.early_stopping import StopDecisions, StoppingScheduler
from orchestrator.study.proposals import Proposals, open_storage
from orchestrator.study.searcher import StudySearcher
from orchestrator.study.session import Session
from orchestrator.study.trial_runs import TrialRuns
from orchestrator.study.tuning import run_on_slots
from search_spaces.stopping import Stopping


def run_search(session: Session) -> None:
    """Run the study's trials until their total is reached, or the user interrupts."""
    study, journal, interrupt = session.study, session.journal, session.interrupt
    decisions = StopDecisions(study.search.stop, journal)
    runs = TrialRuns(session, decisions)
    url = storage_url(study, journal.folder)
    waiting = DatabaseWait(url, session.view.say, lambda: interrupt.requested)
    proposals = Proposals(study, open_storage(study, url, read_identity(journal.folder), waiting))
    searcher = StudySearcher(proposals, runs, study.search.seeds)
    tried = trials(journal.runs())
    open_trials = study.trials - sum(trial.state != "running" for trial in tried)
    if open_trials <= 0:
        return
    # Of a trial that goes on some seeds may have ended.
    ended = sum(run.state != "running" for trial in tried if trial.state == "running" for run in trial.runs)
    open_runs = open_trials * study.search.seeds - ended
    of_seeds = f" of {study.search.seeds} seeds" if study.search.seeds > 1 else ""
    session.view.phase(
        f"{open_trials} trials{of_seeds} on {session.capacity.concurrent_trials(study.resources)[0]} slots",
        runs=open_runs,
        epochs=open_runs * study.epochs,
    )
    scheduler = None if study.search.stop == Stopping() else StoppingScheduler(decisions)
    run_on_slots(session, searcher, study.resources, "resources", scheduler)
