"""What the runs of a study say: the method and ε in words, curves, the epoch that counts, overfitting, the front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.records.constraints import feasible
from orchestrator.records.pareto import pareto_indices
from orchestrator.records.runs import Run
from orchestrator.records.seeds import Spread, counting, spreads, trials
from search_spaces.study import Study
from trainers import catalog
from trainers.config import Evaluation, Experiment
from trainers.diagnostics.overfitting import (
    CHANCE_ACCURACY,
    CLEAN_ACCURACY,
    DELTA_ENERGY,
    ROBUST_ACCURACY,
    Onset,
    jumps_without_collapse,
    onsets,
)
from trainers.diagnostics.phases import Phases, phases

_EPOCHS_WITH_PHASES = 30
_ACCURACIES = (CLEAN_ACCURACY, ROBUST_ACCURACY, CHANCE_ACCURACY)
_NAMES = {
    "fgsm": "FGSM",
    "fgsm_rs": "FGSM-RS",
    "n_fgsm": "N-FGSM",
    "sat": "SAT",
    "trades": "TRADES",
    "mart": "MART",
    "mail_at": "MAIL-AT",
    "mail_trades": "MAIL-TRADES",
    "weat_nat": "WEAT-NAT",
    "weat_adv": "WEAT-ADV",
    "sat_awp": "AT-AWP",
    "trades_awp": "TRADES-AWP",
    "grad_align": "GradAlign",
    "aaer": "AAER",
    "aaer_n": "N-AAER",
}


@dataclass(frozen=True)
class HeldOutPoint:
    """Where a trial that counts ended, on held-out images at the checkpoint that counts; accuracies are fractions.

    `chance` is what always naming the most frequent class would reach. `allowed` says whether the study's constraints
    are met; the front is that of the trials which do.
    """

    trial: int
    method: str
    epsilon: str
    epsilon_value: float
    clean: float
    robust: float
    chance: float
    collapsed: bool
    allowed: bool
    on_front: bool


def confirmations(runs: Iterable[Run]) -> list[Run]:
    """The confirmations, without the trials."""
    return [run for run in runs if run.kind == "confirmation"]


def method_label(experiment: Experiment) -> str:
    """For example `FGSM + DER`. It names what was run: a slot that differs from the preset's is spelled out."""
    method = experiment.method
    base = method.name.removesuffix("_der")
    preset = catalog.PRESETS[method.name]
    slots = ("inner", "outer", "weighting", "weight_perturbation")
    pairs = [(slot, getattr(method, slot), preset.slot(slot)) for slot in slots]
    named = [(slot, chosen and chosen.name, usual and usual["name"]) for slot, chosen, usual in pairs]
    changed = [f"{slot} {chosen or 'none'}" for slot, chosen, usual in named if chosen != usual]
    label = _NAMES.get(base, base) + (f" ({', '.join(changed)})" if changed else "")
    own = catalog.PRESETS[base].slot("regularizer") if base in catalog.PRESETS else None
    usual, chosen = own and own["name"], method.regularizer and method.regularizer.name
    if chosen == usual:
        return label
    return f"{label} + {chosen.upper()}" if chosen else f"{label} without {usual}"


def epsilon_text(experiment: Experiment) -> str:
    """The training ε as it was written; what a sampler drew, with all its digits, is cut to four."""
    epsilon = experiment.attack.epsilon
    return epsilon.text if "/" in epsilon.text or len(epsilon.text) <= 6 else f"{float(epsilon):.4g}"


def curve(run: Run, metric: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one metric. Whatever people read counts epochs from 1, as the terminal does."""
    points = [(record.epoch + 1, record.metrics[metric]) for record in run.records if metric in record.metrics]
    return [epoch for epoch, _ in points], [value for _, value in points]


def objectives(study: Study, trial: Run) -> dict[str, Spread]:
    """Objective -> value over the seeds of a trial that counts; empty for any other."""
    return dict(zip(study.search.objectives, spreads(trial), strict=False))


def overfitting(run: Run) -> list[Onset]:
    """Where overfitting sets in; nothing for a run whose records have gaps or lack what the detectors read."""
    if not _whole(run):
        return []
    # Records never change once written: folder, number and last time say which they are. The thresholds are apart:
    # runs that differ in nothing else share a folder.
    key = (run.folder, len(run.records), run.records[-1].time, run.experiment.evaluation)
    if key not in _detected:
        _detected[key] = _detect(run)
    return _detected[key]


_detected: dict[tuple[Path, int, float, Evaluation], list[Onset]] = {}


def _whole(run: Run) -> bool:
    return bool(run.records) and [record.epoch for record in run.records] == list(range(len(run.records)))


def _detect(run: Run) -> list[Onset]:
    try:
        return onsets(run.records, run.experiment)
    except KeyError:
        return []


def onset_text(run: Run) -> str:
    """For example `catastrophic at epoch 9 (confirmed)`, or nothing; of a trial of several seeds, by seed."""
    if run.over_seeds:
        texts = [(one.experiment.seed, onset_text(one)) for one in run.over_seeds]
        return "; ".join(f"seed {seed}: {text}" for seed, text in texts if text)
    return ", ".join(
        f"{onset.kind} at epoch {onset.epoch + 1}{'' if onset.iteration is None else f', step {onset.iteration}'} "
        f"({'confirmed' if onset.confirmed else 'unconfirmed'})"
        for onset in overfitting(run)
    )


def energy_warnings(run: Run) -> list[int]:
    """Epochs in which ΔE(x) jumped up without a collapse; the same runs are left out as in `overfitting`."""
    try:
        return jumps_without_collapse(run.records, run.experiment) if _whole(run) else []
    except KeyError:
        return []


def training_phases(run: Run) -> Phases | None:
    """The three phases of mean ΔE(x) on training images: of a run long enough to have them, and not of a collapse."""
    values = curve(run, DELTA_ENERGY)[1]
    measured = _whole(run) and len(values) == len(run.records) >= _EPOCHS_WITH_PHASES
    return phases(values) if measured and not collapsed(run) else None


def collapsed(run: Run) -> bool:
    """Whether catastrophic overfitting set in."""
    return any(onset.kind == "catastrophic" for onset in overfitting(run))


def held_out_points(study: Study, runs: Sequence[Run]) -> list[HeldOutPoint]:
    """Every trial that counts with both accuracies, also those that are no objective of the study."""
    ended = []
    for run in trials(runs):
        if not run.objectives:
            continue
        means = {name: spread.mean for name, spread in objectives(study, run).items()}
        values = counting(run, study.search.checkpoint, _ACCURACIES) | means
        if CLEAN_ACCURACY in values and ROBUST_ACCURACY in values:
            ended.append((run, values[CLEAN_ACCURACY], values[ROBUST_ACCURACY], values.get(CHANCE_ACCURACY, 0.0)))
    allowed = {run.trial for run in feasible(study, runs)}
    candidates = [(clean, robust) for run, clean, robust, _ in ended if run.trial in allowed]
    front = {candidates[index] for index in pareto_indices(candidates)}
    return [
        HeldOutPoint(
            trial=run.trial,
            method=method_label(run.experiment),
            epsilon=epsilon_text(run.experiment),
            epsilon_value=float(run.experiment.attack.epsilon),
            clean=clean,
            robust=robust,
            chance=chance,
            collapsed=any(collapsed(one) for one in run.over_seeds or (run,)),
            allowed=run.trial in allowed,
            on_front=run.trial in allowed and (clean, robust) in front,
        )
        for run, clean, robust, chance in ended
    ]


def nothing_counts(study: Study, runs: Sequence[Run]) -> str:
    """Why there is no such point: none yet, or, where all trials have ended, how they did."""
    states = Counter(run.state for run in trials(runs))
    if states.total() < study.trials or states["running"]:
        return "No trial is complete yet."
    ended = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"No trial has a result that counts: {ended}. The table of all trials says why."


def evaluation_epsilon(runs: Iterable[Run]) -> str:
    """The ε of the held-out attack as it was written (a study has one)."""
    return ", ".join(dict.fromkeys(run.experiment.evaluation.epsilon.text for run in runs))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each dotted path by its last two parts, or as many as tell it from the others: `regularizer.beta`."""
    unique = list(dict.fromkeys(paths))
    short = {}
    for path in unique:
        parts = path.split(".")
        endings = [".".join(parts[start:]) for start in reversed(range(max(len(parts) - 1, 1)))]
        others = [f".{other}" for other in unique if other != path]
        short[path] = next(
            (ending for ending in endings if not any(other.endswith(f".{ending}") for other in others)), path
        )
    return short
