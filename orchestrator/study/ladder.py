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
from orchestrator.records.rungs import RungResult, climbed
from orchestrator.records.trials import Trial
from orchestrator.study.evaluations import evaluate_on_ray
from orchestrator.study.session import Session
from search_spaces.study import Rung
from trainers.catalog.attacks import attack_label
from trainers.evaluation.result import EXACT, FAST


def climb(session: Session, candidates: Sequence[Trial]) -> list[Trial]:
    """The trials that are left, most robust under the last rung first; unranked if no rung had any to drop.

    One that can't be evaluated is left out until a later call can.
    `candidates` are in the order of the search, which decides between equals. Raises Interrupted.
    """
    left = list(candidates)
    before = climbed(session.journal.events())
    known = {(found.attack, found.samples, found.fast, frozenset(found.accuracies)): found for found in before}
    for rung in session.study.confirm.ladder:
        if len(left) <= rung.keep:
            continue
        found = known.get((rung.attack, rung.samples, rung.fast, frozenset(trial.number for trial in left)))
        if found is None:
            found = _attacked(session, rung, left)
        # What was found stays, but more may be wanted now than it kept.
        found = replace(found, kept=tuple(found.accuracies)[: rung.keep])
        if found not in before:  # one that left out a trial is climbed again, perhaps for nothing
            session.journal.append(
                RungClimbed(
                    attack=found.attack,
                    samples=found.samples,
                    fast=found.fast,
                    accuracies=list(found.accuracies.items()),
                    kept=found.kept,
                )
            )
        left = [next(trial for trial in left if trial.number == number) for number in found.kept]
    return left


def rank(rung: Rung, order: Sequence[int], accuracies: Mapping[int, float]) -> RungResult:
    """The most robust trials are kept; of equals those that come first in `order`."""
    ranked = sorted(order, key=lambda trial: -accuracies[trial])
    return RungResult(
        rung.attack, rung.samples, rung.fast, {trial: accuracies[trial] for trial in ranked}, tuple(ranked[: rung.keep])
    )


def _attacked(session: Session, rung: Rung, left: Sequence[Trial]) -> RungResult:
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
    return rank(rung, whole, {number: fmean(found[number]) for number in whole})
