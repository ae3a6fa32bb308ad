"""What the epochs of a run show: its curves, where overfitting sets in, the phases of its training."""

from __future__ import annotations

from pathlib import Path

from orchestrator.records.runs import Run
from orchestrator.records.trials import Trial
from trainers.config import Evaluation
from trainers.diagnostics.overfitting import DELTA_ENERGY, Onset, are_whole, onsets
from trainers.diagnostics.phases import Phases, phases

_EPOCHS_WITH_PHASES = 30


def curve(run: Run, metric: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one metric. Whatever people read counts epochs from 1, as the terminal does."""
    points = [(record.epoch + 1, record.metrics[metric]) for record in run.records if metric in record.metrics]
    return [epoch for epoch, _ in points], [value for _, value in points]


def overfitting(run: Run) -> list[Onset]:
    """What `onsets` finds in a run, looked for once."""
    if not run.records:
        return []
    # Records never change once written: folder, number and last time say which they are. The thresholds are apart:
    # runs that differ in nothing else share a folder.
    key = (run.folder, len(run.records), run.records[-1].time, run.experiment.evaluation)
    if key not in _detected:
        _detected[key] = onsets(run.records, run.experiment)
    return _detected[key]


_detected: dict[tuple[Path, int, float, Evaluation], list[Onset]] = {}


def trial_onset_text(trial: Trial) -> str:
    """What `onset_text` says of its runs, by seed if there are several."""
    if trial.seeds == 1:
        return onset_text(trial.first)
    texts = [(run.experiment.seed, onset_text(run)) for run in trial.runs]
    return "; ".join(f"seed {seed}: {text}" for seed, text in texts if text)


def onset_text(run: Run) -> str:
    """For example `catastrophic at epoch 9 (confirmed)`, or nothing."""
    return ", ".join(
        f"{onset.kind} at epoch {onset.epoch + 1}{'' if onset.iteration is None else f', step {onset.iteration}'} "
        f"({'confirmed' if onset.confirmed else 'unconfirmed'})"
        for onset in overfitting(run)
    )


def training_phases(run: Run) -> Phases | None:
    """The three phases of mean ΔE(x) on training images: of a run long enough to have them, and not of a collapse."""
    values = curve(run, DELTA_ENERGY)[1]
    measured = are_whole(run.records) and len(values) >= _EPOCHS_WITH_PHASES
    return phases(values) if measured and not collapsed(run) else None


def collapsed(run: Run) -> bool:
    """Whether catastrophic overfitting set in."""
    return any(onset.kind == "catastrophic" for onset in overfitting(run))
