"""What was run and what came out, in sentences. Only what the records say; nothing is concluded from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from orchestrator.records.constraints import limits
from orchestrator.records.events import Event, State
from orchestrator.records.runs import Run
from orchestrator.records.savings import savings
from orchestrator.records.trials import trials
from orchestrator.report.curves import overfitting
from orchestrator.report.held_out import HeldOutPoint, nothing_counts
from orchestrator.report.labels import evaluation_epsilon, method_label
from orchestrator.report.tables import by_protocol, confirmations, results
from search_spaces.study import Study
from trainers import catalog
from trainers.catalog.attacks import attack_label
from trainers.diagnostics.overfitting import jumps_without_collapse

_STATES: tuple[State, ...] = ("complete", "stopped", "failed", "running")


def what_was_run(study: Study, runs: Sequence[Run], events: Sequence[Event]) -> str:
    """Data, model, numbers of trials by state, seeds, when, and how long."""
    tried, confirmed = trials(runs), confirmations(runs)
    if not tried:
        return f"No trial of {study.trials} has been started yet."
    data = _list(trial.experiment.data.name for trial in tried)
    models = _list(trial.experiment.model.name for trial in tried)
    states = Counter(trial.state for trial in tried)
    known = len(tried)
    # A total may be lowered below what has been started.
    total = (
        f"{known} of {study.trials} trials" if known <= study.trials else f"{known} trials, of {study.trials} wanted"
    )
    counted = [f"{states[state]} {state}" for state in _STATES if states[state]]
    sentences = [
        f"{models} on {data}: {total} ({', '.join(counted)}), proposed by "
        f"{study.search.sampler}, trained with seed "
        f"{_list(sorted({run.experiment.seed for run in runs if run.kind != 'confirmation'}))}."
    ]
    if confirmed:
        seeds = _list(sorted({run.experiment.seed for run in confirmed}))
        evaluated = sum(run.evaluation is not None for run in confirmed)
        sentences.append(
            f"Trained again from other seeds: {_count({run.trial for run in confirmed}, 'configuration')} with seed "
            f"{seeds} ({_count(confirmed, 'run')}, {evaluated} evaluated on the test set)."
        )
    times = [event.time for event in events] + [record.time for run in runs for record in run.own_records]
    sentences.append(f"From {_moment(min(times))} to {_moment(max(times))} UTC")
    seconds = sum(record.metrics.get("epoch/seconds", 0.0) for run in runs for record in run.own_records)
    epochs = sum(len(run.own_records) for run in runs)
    sentences[-1] += f"; {duration(seconds)} of training and measuring, summed over {_count(range(epochs), 'epoch')}."
    return " ".join(sentences)


def headlines(study: Study, runs: Sequence[Run], points: Sequence[HeldOutPoint]) -> list[str]:
    """What the data say first: collapses per method, the most robust configuration held out, and on the test set.

    `points` are those of the runs.
    """
    measured = [run for run in runs if run.kind != "confirmation" and run.records]
    if not measured:
        return ["No epoch has been recorded yet."]
    saved = [f"{saving}." for saving in savings(runs, study)]
    return [*_overfitting(measured), *saved, *_held_out(study, runs, points), *_tested(runs)]


def duration(seconds: float) -> str:
    """For example `3.2 hours`."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _overfitting(measured: Sequence[Run]) -> list[str]:
    noun = "trial" if all(run.seeds == 1 for run in measured) else "run"
    groups: dict[str, list[Run]] = {}
    for run in measured:
        groups.setdefault(method_label(run.experiment), []).append(run)
    sentences = []
    for kind, words in (("catastrophic", "Catastrophic overfitting"), ("robust", "Robust overfitting")):
        counts = {
            label: sum(any(onset.kind == kind for onset in overfitting(run)) for run in groups[label])
            for label in sorted(groups)
        }
        if any(counts.values()):
            listed = ", ".join(f"{count} of {len(groups[label])} {label}" for label, count in counts.items())
            sentences.append(f"{words} in {listed} {noun}s.")
    sentences = sentences or [f"No overfitting was detected in {_count(measured, noun)}."]
    jumps = [
        f"{_name(run)} (epoch {', '.join(str(epoch + 1) for epoch in epochs)})"
        for run in measured
        if (epochs := jumps_without_collapse(run.records, run.experiment))
    ]
    if jumps:
        sentences.append(f"ΔE(x) jumped up while robust accuracy stood, a warning only: {noun} {', '.join(jumps)}.")
    return sentences


def _name(run: Run) -> str:
    return str(run.trial) if run.seeds == 1 else f"{run.trial} with seed {run.experiment.seed}"


def _held_out(study: Study, runs: Sequence[Run], points: Sequence[HeldOutPoint]) -> list[str]:
    if not points:
        return [nothing_counts(study, runs)]
    sentences = []
    if study.search.constraints:
        # What does not meet them is not chosen, and so not called the best.
        every, points = len(points), [point for point in points if point.allowed]
        sentences.append(f"{len(points)} of {every} trials that count meet search.constraints.")
        unknown = ", ".join(metric for metric, limit in limits(study, runs).items() if limit is None)
        sentences += [f"That of {unknown} is not applied: its baseline has no result."] if unknown else []
        if not points:
            return sentences
    best = max(points, key=lambda point: point.robust)
    among = " among them" if sentences else ""
    seeds = f", mean of {study.search.seeds} seeds" if study.search.seeds > 1 else ""
    if best.robust <= best.chance:
        return [
            *sentences,
            f"No trial{among} is more robust on held-out images than chance ({100 * best.chance:.2f}\u00a0%): at best "
            f"{100 * best.robust:.2f}\u00a0% under PGD-10 at ε = {evaluation_epsilon(runs)}.",
        ]
    return [
        *sentences,
        f"Most robust on held-out images{among}: trial {best.trial} ({best.method}, training ε = {best.epsilon}) with "
        f"{100 * best.robust:.2f}\u00a0% under PGD-10 at ε = {evaluation_epsilon(runs)} and "
        f"{100 * best.clean:.2f}\u00a0% clean ({study.search.checkpoint} epoch{seeds}).",
    ]


def _tested(runs: Sequence[Run]) -> list[str]:
    sentences = []
    for protocol, rows in by_protocol(results(runs)).items():
        best = rows[0]
        seeds = (
            f"mean ± sample standard deviation of n = {best.robust.count} seeds"
            if best.robust.count > 1
            else "n = 1 seed"
        )
        under = f"under {attack_label(protocol.attack)} at ε = {protocol.epsilon} ({seeds})."
        chance = 1 / catalog.DATASETS[protocol.data.partition(" ")[0]].num_classes
        sentences.append(
            f"Most robust on {protocol.samples} test images: trial {best.trial} ({best.method}, training ε = "
            f"{best.epsilon}) with {best.robust}\u00a0% {under}"
            if best.robust.mean > chance
            else f"No trial is more robust on {protocol.samples} test images than chance ({100 * chance:.2f}\u00a0%): "
            f"at best {best.robust}\u00a0% {under}"
        )
    return sentences


def _list(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _count(things: Sequence[object] | set[int], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
