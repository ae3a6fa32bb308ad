"""Where the runs of a study's trials come from: what Optuna proposes, issued run by run, and how each one ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ray.tune.search import Searcher

from orchestrator.slots.messages import Job, Report
from orchestrator.study.proposals import Outcome, Proposals, SeedRun

MAX_ATTEMPTS = 3


class Runs(Protocol):
    """The runs of the trials, as the searcher needs them. A trial has one run a seed, counted from 0."""

    def propose(self, number: int, seed: int, values: Mapping[str, Any]) -> Job:
        """The job of a run at a point of the space."""

    def decided(self, number: int, seed: int) -> Outcome | None:
        """How a run ended of which Optuna has not heard, or None if it is to run."""

    def epochs(self, number: int, seed: int) -> int:
        """How many epochs of a run are recorded."""

    def judge(self, number: int, seed: int, report: Report) -> Outcome | None:
        """How a run ended, from its last report; None if it goes on later."""

    def ended(self, number: int, seed: int, outcome: Outcome) -> None:
        """A run has ended."""

    def conclude(self, number: int, outcomes: Sequence[Outcome]) -> Outcome:
        """How a trial ended whose runs have all been told as ended: what Optuna is told."""


class StudySearcher:
    """Proposes trials to Tune until the study's total is reached, and tells Optuna how they ended.

    Each of a trial's runs, one a seed, is a trial of Tune's; Optuna is told when the last of them has ended. A run that
    ends without objectives ends its trial: those that were not issued yet never are. Trials found running when the
    search starts were left by a dead driver: their runs are issued again under their own number, unless they are
    decided; so are those whose processes died. One is given up after MAX_ATTEMPTS in a row without a new epoch. There
    must be one driver.
    """

    def __init__(self, proposals: Proposals, runs: Runs, seeds: int) -> None:
        self._proposals = proposals
        self._seeds = range(seeds)
        self._runs = runs
        self._waiting: list[SeedRun] = []  # to be issued, in this order
        self._running: dict[str, SeedRun] = {}  # by Tune's name for it
        self._outcomes: dict[SeedRun, Outcome] = {}  # of trials that have other runs to end
        for number in self._proposals.running():
            self._take_up(number)

    def suggest(self, trial_id: str) -> Job | str | None:
        """The next run, None for "ask again later", or FINISHED."""
        while True:
            while self._waiting:
                run = self._waiting.pop(0)
                job = self._issue(run)
                if job is not None:
                    self._running[trial_id] = run
                    return job
            number = self._proposals.ask()
            if number is None:
                # A run that is on its way may have to be issued again.
                return None if self._running else str(Searcher.FINISHED)
            self._waiting += [SeedRun(number, seed) for seed in self._seeds]

    def ended(self, trial_id: str, report: Report) -> None:
        """Hear how a run ended; one that was only interrupted leaves its trial running and is issued again."""
        run = self._running.pop(trial_id, None)
        if run is None:
            return
        outcome = self._runs.judge(*run, report)
        if outcome is not None:
            self._end(run, outcome)
        elif report.get("crashed"):
            self._waiting.append(run)
        else:
            # Nobody is to blame for an interruption: it counts as no attempt in vain.
            self._proposals.note(run, replace(self._proposals.attempts(run), fruitless=0))

    def _take_up(self, number: int) -> None:
        """Go on with a trial that a dead driver left: its runs end that are decided, the others are issued again."""
        decided = {run: self._runs.decided(*run) for run in (SeedRun(number, seed) for seed in self._seeds)}
        self._waiting += [run for run, outcome in decided.items() if outcome is None]
        for run, outcome in decided.items():
            if outcome is not None:
                self._record(run, outcome)
        self._settle(number)

    def _issue(self, run: SeedRun) -> Job | None:
        """The job of a run; None where it has ended: given up, or the same as one that was stopped."""
        attempts = self._proposals.attempts(run).again(self._runs.epochs(*run))
        if attempts.fruitless > MAX_ATTEMPTS:
            self._end(run, Outcome("failed", f"given up after {MAX_ATTEMPTS} attempts without a new epoch"))
            return None
        self._proposals.note(run, attempts)
        # As they are stored, the first time as every other: a whole number that was enqueued comes back as a float.
        job = self._runs.propose(*run, self._proposals.values(run.number))
        outcome = self._runs.decided(*run)
        if outcome is not None:
            self._end(run, outcome)
            return None
        return job

    def _end(self, run: SeedRun, outcome: Outcome) -> None:
        self._record(run, outcome)
        self._settle(run.number)

    def _record(self, run: SeedRun, outcome: Outcome) -> None:
        """A run has ended; without objectives the runs of its trial that were never issued are dropped."""
        self._runs.ended(*run, outcome)
        self._outcomes[run] = outcome
        if not outcome.objectives:
            self._waiting = [
                other
                for other in self._waiting
                if other.number != run.number or self._proposals.attempts(other).attempts
            ]

    def _settle(self, number: int) -> None:
        """Tell Optuna of a trial once none of its runs is on its way."""
        if any(run.number == number for run in (*self._waiting, *self._running.values())):
            return
        ended = sorted(run for run in self._outcomes if run.number == number)
        self._proposals.tell(number, self._runs.conclude(number, [self._outcomes.pop(run) for run in ended]))
