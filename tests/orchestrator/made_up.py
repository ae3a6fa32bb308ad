"""A small study as files, without a second of training: what reports and comparisons are tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from orchestrator.records.events import Ended, State
from orchestrator.records.journal import Journal
from orchestrator.records.runs import Run
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import create_study_folder
from orchestrator.report.held_out import held_out_points
from orchestrator.report.summary import headlines
from search_spaces.study import Study, parse_study
from trainers.config import Experiment
from trainers.evaluation.result import EvaluationResult, Flags, Protocol
from trainers.origin import Origin
from trainers.records import EpochRecord, append_record

EPOCHS = 12
HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x>&\""
STATISTICS = ("mean", "q25", "q75")

POINTS = {
    0: {"method.name": "fgsm", "attack.epsilon": "16/255"},
    1: {"method.name": "fgsm_der", "attack.epsilon": "16/255", "method.regularizer.beta": 30.0},
    2: {"method.name": "weat_adv", "attack.epsilon": "8/255"},
    3: {"method.name": "fgsm", "attack.epsilon": "8/255"},
    4: {"method.name": "fgsm", "attack.epsilon": "8/255"},
    5: {"method.name": "fgsm", "attack.epsilon": "8/255"},
}
CHOICES = {"method.name": ("fgsm", "fgsm_der", "weat_adv"), "attack.epsilon": ("8/255", "16/255")}
OBJECTIVES = {0: (0.9, 0.38), 1: (0.8, 0.45), 2: (0.85, 0.42), 4: (0.84, 0.41)}


def made_up_study() -> Study:
    return parse_study(
        {
            "name": "collapse",
            "experiment": {"evaluation": {"epsilon": "8/255"}, "epochs": EPOCHS},
            "space": {
                "method.name": ["fgsm", "fgsm_der", "weat_adv"],
                "attack.epsilon": ["8/255", "16/255"],
                "method.regularizer.beta": {"low": 1, "high": 300, "log": True, "when": {"method.name": "fgsm_der"}},
            },
            "search": {"trials": 8},
            "tracking": {"experiment": HOSTILE},
        }
    )


def record(epoch: int, collapse: int | None, height: float) -> EpochRecord:
    """Robust accuracy rises by 2 points an epoch and falls to 2 % at `collapse`, where ΔE jumps up."""
    fallen = collapse is not None and epoch >= collapse
    delta = 3.0 + 5 * (epoch - collapse) if fallen and collapse is not None else -0.1 - 0.02 * epoch
    robust = 0.02 if fallen else height + 0.02 * epoch
    metrics = {
        "val/clean_accuracy": 0.6 + 0.02 * epoch,
        "val/pgd10_accuracy": robust,
        "val/chance_accuracy": 0.1,
        "probe/adversarial_accuracy": robust + (0.6 if fallen else 0.05),
        "probe_reference/pgd10_accuracy": robust + 0.02,
        "epoch/seconds": 30.0,
    }
    for place, statistic in enumerate(STATISTICS):
        for split in ("val", "probe", "probe_reference"):
            metrics[f"{split}/delta_energy/{statistic}"] = delta + (0.0, -0.5, 0.5)[place]
        metrics[f"val/natural_energy/{statistic}"] = -3 - 0.1 * epoch
        metrics[f"val/adversarial_energy/{statistic}"] = -3 - 0.1 * epoch - delta
        metrics[f"val/natural_joint_energy/{statistic}"] = -2.5 - 0.1 * epoch
        metrics[f"val/adversarial_joint_energy/{statistic}"] = -1.5 - 0.1 * epoch
    return EpochRecord(epoch, 1.7e9 + 30 * epoch, metrics)


def evaluation(digest: str, counts: dict[str, int], attack: str = "autoattack") -> EvaluationResult:
    standing = {stage: tuple(image < count for image in range(100)) for stage, count in counts.items()}
    protocol = Protocol("digits", "test", 100, "8/255", attack, 0, 50, 25, "best")
    return EvaluationResult(protocol, digest, EPOCHS - 1, Flags(0, 100, standing))


def counts(clean: int, robust: int) -> dict[str, int]:
    return {"clean": clean, "apgd-ce": robust + 6, "apgd-t": robust + 1, "fab-t": robust + 1, "square": robust}


def propose_run(
    journal: Journal, trial: int, values: Mapping[str, Any], experiment: Experiment, *, seed: int = 0, seeds: int = 1
) -> Path:
    """Write into the journal that a run was issued; returns its folder, which is not there yet."""
    folder = journal.trial_folder(trial, seed)
    journal.propose(trial, values, experiment, folder=folder, seed=seed, seeds=seeds)
    return folder


def confirm_run(
    journal: Journal,
    trial: int,
    seed: int,
    values: Mapping[str, Any],
    experiment: Experiment,
    origin: Origin | None = None,
) -> Path:
    """The same of a confirmation."""
    journal.confirm(trial, seed, values, experiment, origin)
    return journal.confirmation_folder(trial, seed)


def end_run(journal: Journal, key: str, state: State, reason: str = "", objectives: Sequence[float] = ()) -> None:
    """Write into the journal how a run ended."""
    journal.append(Ended(key=key, state=state, reason=reason, objectives=objectives))


def write_study(root: Path) -> Path:
    """Four complete trials (FGSM collapses at its sixth epoch), one running, one failed; three are confirmed."""
    study = made_up_study()
    journal = create_study_folder(root / "collapse", study)
    for number, values in POINTS.items():
        run_folder = propose_run(journal, number, values, study.experiment_for(values))
        for epoch in range(4 if number == 3 else 0 if number == 5 else EPOCHS):
            append_record(run_folder, record(epoch, 5 if number == 0 else None, 0.2 + 0.01 * number))
        if number in OBJECTIVES:
            end_run(journal, f"trial-{number:04d}", "complete", "completed", list(OBJECTIVES[number]))
    end_run(journal, "trial-0005", "failed", HOSTILE)
    tested = {
        (1, 1): counts(80, 43), (1, 2): counts(84, 47), (2, 1): counts(90, 44), (2, 2): counts(91, 45),
        (4, 1): {"clean": 85, "pgd20": 40}, (4, 2): None,
    }  # fmt: skip
    for (number, seed), stages in tested.items():
        values = POINTS[number] | {"seed": seed}
        experiment = study.experiment_for(values)
        run_folder = confirm_run(journal, number, seed, values, experiment)
        if stages is not None:
            attack = "autoattack" if "square" in stages else "pgd20"
            evaluation(experiment.digest(), stages, attack).save(run_folder / "evaluation.json")
            end_run(journal, f"{number:04d}-seed{seed}", "complete", "completed")
    stored = optuna.create_study(
        storage=storage_url(study, journal.folder), study_name=study.name, directions=["maximize"] * 2
    )
    space = {name: optuna.distributions.CategoricalDistribution(choices) for name, choices in CHOICES.items()}
    for number, objectives in OBJECTIVES.items():
        values = {name: POINTS[number][name] for name in space}
        stored.add_trial(optuna.trial.create_trial(params=values, distributions=space, values=objectives))
    return journal.folder


def lengthened(run: Run, delta_energies: Sequence[float]) -> Run:
    """The run as if it had gone on without a collapse, with these mean ΔE(x), one an epoch."""
    records = [record(epoch, None, 0.2) for epoch in range(len(delta_energies))]
    splits = ("val", "probe", "probe_reference")
    changed = [{f"{split}/delta_energy/mean": value for split in splits} for value in delta_energies]
    pairs = zip(records, changed, strict=True)
    return replace(run, records=tuple(replace(old, metrics={**old.metrics, **new}) for old, new in pairs))


def said(study: Study, runs: Sequence[Run]) -> list[str]:
    """The headlines of a report."""
    return headlines(study, runs, held_out_points(study, runs))
