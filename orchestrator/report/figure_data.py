"""The numbers behind each figure as CSV lines: accuracies as fractions, energies in nats, epochs counted from 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from orchestrator.pages.csv_rows import CsvRow
from orchestrator.records.runs import Run
from orchestrator.records.trials import trials
from orchestrator.report.curves import curve, overfitting
from orchestrator.report.held_out import HeldOutPoint
from orchestrator.report.importance import Importances
from orchestrator.report.labels import epsilon_text, method_label
from trainers.diagnostics.overfitting import REFERENCE_DELTA_ENERGY, ROBUST_ACCURACY


def energy_curve_lines(runs: Iterable[Run]) -> list[CsvRow]:
    """One line per trial (its first seed) and epoch of `energy_curves`; `onset` says what sets in there."""
    lines: list[CsvRow] = []
    for run in (trial.first for trial in trials(runs)):
        energies = dict(zip(*curve(run, REFERENCE_DELTA_ENERGY), strict=True))
        accuracies = dict(zip(*curve(run, ROBUST_ACCURACY), strict=True))
        onsets = {onset.epoch + 1: onset.kind for onset in overfitting(run)}
        lines += [
            {
                "trial": run.trial,
                "method": method_label(run.experiment),
                "epsilon": epsilon_text(run.experiment),
                "epoch": epoch,
                "delta_energy_mean": energy,
                "robust_accuracy": accuracies.get(epoch, ""),
                "onset": onsets.get(epoch, ""),
            }
            for epoch, energy in energies.items()
        ]
    return lines


def held_out_lines(points: Iterable[HeldOutPoint]) -> list[CsvRow]:
    """One line per trial that counts: the data of `pareto_front` and of `accuracy_over_epsilon`."""
    return [asdict(point) for point in points]


def importance_lines(importances: Importances) -> list[CsvRow]:
    """One line per objective and parameter."""
    return [
        {"objective": objective, "parameter": parameter, "importance": share}
        for objective, shares in importances.items()
        for parameter, share in shares.items()
    ]
