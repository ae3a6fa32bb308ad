"""The runs of a study's trials: what the searcher proposes is prepared, judged and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from orchestrator.records.constraints import limits, violations
from orchestrator.records.runs import Run, trial_key
from orchestrator.records.trials import Trial, trials
from orchestrator.slots.messages import Job, Report, job_for
from orchestrator.study.beginnings import Beginnings
from orchestrator.study.early_stopping import StopDecisions
from orchestrator.study.endings import judge_run, stopped_outcome
from orchestrator.study.proposals import Outcome
from orchestrator.study.session import Session
from trainers.origin import Origin


class TrialRuns:
    """The runs of a study's trials, as its searcher needs them."""

    def __init__(self, session: Session, decisions: StopDecisions) -> None:
        self._session = session
        self._study, self._journal = session.study, session.journal
        self._decisions = decisions
        self._beginnings = Beginnings(session.study, session.journal, session.study.resources)

    def propose(self, number: int, seed: int, values: Mapping[str, Any]) -> Job:
        """Prepare a run's folder, record that it was issued, and give the slot what it needs."""
        key, first = trial_key(number, seed), self._study.experiment_for(values)
        experiment = first.with_seed(first.seed + seed)
        folder, twin = self._journal.trial_folder(number, seed), self._journal.twin(number, experiment)
        if twin is None:
            origin = self._beginnings.begin(experiment, folder)
        else:
            folder, origin = twin.folder, Origin("twin", twin.key, len(twin.records))
            if twin.state == "stopped":
                self._decisions.inherit(key, twin.key)
        self._journal.propose(
            number, values, experiment, seed=seed, seeds=self._study.search.seeds, folder=folder, origin=origin
        )
        sharing = self._beginnings.sharing(experiment, folder)
        return job_for(key, experiment, folder, self._study.resources, sharing)

    def decided(self, number: int, seed: int) -> Outcome | None:
        """Complete or failed, where the driver died before Optuna heard of it; or stopped."""
        run = self._find(number, seed)
        if run is not None and run.state in ("complete", "failed"):
            return Outcome(run.state, run.reason, run.objectives)
        return None if run is None else self._stopped(run)

    def epochs(self, number: int, seed: int) -> int:
        """How many epochs are recorded."""
        run = self._find(number, seed)
        return 0 if run is None else len(run.records)

    def judge(self, number: int, seed: int, report: Report) -> Outcome | None:
        """Stopped by a rule, or as its records say."""
        run = self._find(number, seed)
        assert run is not None
        return self._stopped(run) or judge_run(report, run.experiment, run.folder, self._study, self._session.interrupt)

    def ended(self, number: int, seed: int, outcome: Outcome) -> None:
        """Into the journal, once, and onto the screen."""
        run, key = self._find(number, seed), trial_key(number, seed)
        if run is None or run.state == "running":
            self._journal.append(outcome.event(key))
        self._session.view.ended(key, outcome.state, outcome.reason)

    def conclude(self, number: int, outcomes: Sequence[Outcome]) -> Outcome:
        """The trial as every reader of the journal sees it, and whether it meets the constraints."""
        runs = self._journal.runs()
        trial = next((trial for trial in trials(runs) if trial.number == number), None)
        if trial is None:
            return outcomes[0]  # given up before it was ever recorded
        demanded, checkpoint = limits(self._study, runs), self._study.search.checkpoint
        found = violations(demanded, trial, checkpoint) if trial.state == "complete" else {}
        return Outcome(trial.state, trial.reason, trial.objectives, self._curve(trial, outcomes), found)

    def _curve(self, trial: Trial, outcomes: Sequence[Outcome]) -> tuple[float, ...]:
        """The mean over the seeds of a stopped trial, those that ran to their end included, while all of them last."""
        names = self._study.search.objectives
        if trial.state != "stopped" or len(names) > 1:
            return ()
        ended = [run.records for run in trial.runs if run.state == "complete"]
        curves = [tuple(record.metrics[names[0]] for record in records) for records in ended]
        curves += [outcome.curve for outcome in outcomes if outcome.state == "stopped"]
        return tuple(map(fmean, zip(*curves, strict=False)))

    def _find(self, number: int, seed: int) -> Run | None:
        return next((run for run in self._journal.runs() if run.key == trial_key(number, seed)), None)

    def _stopped(self, run: Run) -> Outcome | None:
        stop = self._decisions.decide(run.key, run.experiment, run.records)
        return None if stop is None else stopped_outcome(stop, run.records, self._study)
