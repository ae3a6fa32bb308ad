"""The ladder of the finalists: stronger and stronger attacks on fewer and fewer trials, on held-out images.

The test set is for what is confirmed. Every rung attacks the checkpoints that count with its own attack and keeps the
most robust trials; the journal keeps what it found, so a rung that is done is not climbed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from orchestrator.evaluation.protocols import protocol_for
from orchestrator.records.events import Evaluated, RungClimbed
from orchestrator.records.rungs import climbed, rung_identity
from orchestrator.records.trials import Trial
from orchestrator.study.evaluations import evaluate_on_ray
from orchestrator.study.session import Session
from search_spaces.study import Rung
from trainers.catalog.attacks import attack_label
from trainers.evaluation.result import EXACT, FAST


def climb(session: Session, candidates: Sequence[Trial]) -> list[Trial]:
    """The trials that are left, most robust under the last rung first; unranked if no rung had any to drop.

    One that can't be evaluated is left out until a later call can.
    `candidates` are in the order of the search, which decides between equals. Raises StopRequested.
    """
    left = list(candidates)
    known = climbed(session.journal.events())
    for rung in session.study.confirm.ladder:
        if len(left) <= rung.keep:
            continue
        before = known.get(rung_identity(rung.attack, rung.samples, rung.fast, (trial.number for trial in left)))
        # What was found stays, but more may be wanted now than it kept.
        accuracies = _attacked(session, rung, left) if before is None else before.by_trial
        found = climb_of(rung, accuracies)
        # One that left out a trial is climbed again, perhaps for nothing.
        before = known.get(rung_identity(rung.attack, rung.samples, rung.fast, accuracies))
        if before is None or before.by_trial != found.by_trial or list(before.kept) != found.kept:
            session.journal.append(found)
        left = [next(trial for trial in left if trial.number == number) for number in found.kept]
    return left


def climb_of(rung: Rung, accuracies: Mapping[int, float]) -> RungClimbed:
    """The most robust trials are kept; of equals those that come first in `accuracies`."""
    ranked = sorted(accuracies.items(), key=lambda pair: -pair[1])
    kept = [trial for trial, _ in ranked[: rung.keep]]
    return RungClimbed(attack=rung.attack, samples=rung.samples, fast=rung.fast, accuracies=ranked, kept=kept)


def _attacked(session: Session, rung: Rung, left: Sequence[Trial]) -> dict[int, float]:
    """Robust accuracy of every trial that could be evaluated, in the order given."""
    study, view = session.study, session.view
    settings = study.confirm.model_copy(update={"attack": rung.attack, "samples": rung.samples})
    attack = attack_label(rung.attack) + (" (fast)" if rung.fast else "")
    view.phase(f"{attack} on {rung.samples} held-out images for {len(left)} trials, {rung.keep} stay")
    runs = [run for trial in left for run in trial.runs]
    precision = FAST if rung.fast else EXACT
    protocols = [
        (run, replace(protocol_for(run.experiment, settings, study.search.checkpoint, "held-out"), precision=precision))
        for run in runs
    ]
    found: dict[int, list[float]] = {}
    for run, evaluation in evaluate_on_ray(session, protocols):
        if run.not_evaluated:
            session.journal.append(Evaluated(key=run.key, problem=""))
        found.setdefault(run.trial, []).append(evaluation.robust_accuracy)
    whole = [trial.number for trial in left if len(found.get(trial.number, ())) == len(trial.runs)]
    return {number: fmean(found[number]) for number in whole}
