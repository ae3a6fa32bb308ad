"""The sections of the page, one function each: data in, HTML out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.pages.files import link
from orchestrator.pages.markup import Markup, element, join, table
from orchestrator.records.events import Event, RungClimbed
from orchestrator.records.runs import Run
from orchestrator.records.study_folder import STUDY_FILE
from orchestrator.report.held_out import HeldOutPoint
from orchestrator.report.labels import short_names
from orchestrator.report.summary import headlines, what_was_run
from orchestrator.report.tables import ResultRow, TrialRow, by_protocol
from search_spaces.study import Study
from trainers.catalog.attacks import STAGES, attack_label, stages
from trainers.diagnostics.overfitting import CLEAN_ACCURACY, ROBUST_ACCURACY
from trainers.evaluation.result import Protocol

_OBJECTIVES = {CLEAN_ACCURACY: "Clean", ROBUST_ACCURACY: "PGD\u201110"}
_CITATIONS = (
    (
        "WEAT",
        "M. H. Mirza, M. R. Briglia, S. Beadini, I. Masi. Shedding More Light on Robust Classifiers under the lens of "
        "Energy-based Models. ECCV 2024.",
        "2407.06315",
    ),
    (
        "DER",
        "M. H. Mirza, M. R. Briglia, F. Bartolucci, S. Beadini, G. Lisanti, I. Masi. Understanding Adversarial "
        "Training with Energy-based Models. 2025.",
        "2505.22486",
    ),
)


def opening(study: Study, runs: Sequence[Run], points: Sequence[HeldOutPoint], events: Sequence[Event]) -> Markup:
    """The title, what was run, and what came out."""
    return element(
        "header",
        element("h1", study.name),
        element("p", "A study of adversarial training, seen through the energy of the classifier", class_="kind"),
        element(
            "p",
            what_was_run(study, runs, events),
            " To reproduce: ",
            element("code", f"orchestrator sweep {STUDY_FILE}"),
        ),
        element("div", *(element("p", sentence) for sentence in headlines(study, runs, points)), class_="headline"),
    )


def test_results(rows: Sequence[ResultRow], confirmed: Sequence[Run]) -> Markup:
    """One table a protocol, what is still to come, and what could not be evaluated."""
    parts: list[Markup] = [element("h2", "Results on the test set")]
    parts += _problems(confirmed)
    waiting = sum(run.evaluation is None for run in confirmed)
    if not rows:
        why = (
            f"Confirmation runs without an evaluation yet: {waiting}."
            if waiting
            else "Nothing has been confirmed on the test set yet."
        )
        return element("section", *parts, element("p", why, class_="none"))
    groups = by_protocol(rows)
    if len(groups) > 1:
        parts.append(
            element(
                "p", "Runs were evaluated under different protocols: those are neither averaged nor ranked together."
            )
        )
    for protocol, group in groups.items():
        parts += [_results_table(protocol, group), _protocol_note(protocol, ranked=len(group) > 1)]
    if waiting:
        parts.append(element("p", f"Confirmation runs without an evaluation yet: {waiting}.", class_="note"))
    parts.append(element("p", link("results.csv", "CSV"), class_="note"))
    return element("section", *parts)


def _problems(runs: Iterable[Run]) -> list[Markup]:
    problems = [(run.key, run.not_evaluated) for run in runs if run.not_evaluated]
    return [element("p", f"{key} was not evaluated: {problem}", class_="note") for key, problem in problems]


def _results_table(protocol: Protocol, rows: Sequence[ResultRow]) -> Markup:
    stages = list(rows[0].accuracies)
    settings = {
        "β": [row.strengths.beta for row in rows],
        "β DER": [row.strengths.der_beta for row in rows],
        "γ DER": [row.strengths.gamma for row in rows],
    }
    settings = {name: values for name, values in settings.items() if any(value is not None for value in values)}
    attacks = ["Clean", *(STAGES[stage].label for stage in stages[1:])]
    attacks[2:] = [f"+ {attack}" for attack in attacks[2:]]
    if protocol.attack == "autoattack":
        attacks[-1] = "AutoAttack"
    header = ["Trial", "Method", *settings, "Training ε", *attacks, "Best − last", "n"]
    body = [
        [
            str(row.trial), row.method, *(_value(values[place]) for values in settings.values()), row.epsilon,
            *(_accuracy(row, stage) for stage in stages), "" if row.gap is None else str(row.gap), str(len(row.seeds)),
        ]
        for place, row in enumerate(rows)
    ]  # fmt: skip
    return table(header, body, left=frozenset({1}))


def _accuracy(row: ResultRow, stage: str) -> str:
    text = str(row.accuracies[stage])
    return element("strong", text) if stage in row.best else text


def ladder(climbed: Sequence[RungClimbed], rows: Sequence[TrialRow], runs: Sequence[Run]) -> Markup:
    """What each rung found on held-out images and whom it kept, the trials that got highest first, and whom none could
    attack; empty where there is neither.
    """
    parts = _problems(run for run in runs if run.kind != "confirmation")
    if climbed:
        parts += _rungs(climbed, {row.trial: row.method for row in rows})
    return element("section", element("h2", "Attacks on the finalists"), *parts) if parts else Markup()


def _rungs(climbed: Sequence[RungClimbed], methods: Mapping[int, str]) -> list[Markup]:
    order = dict.fromkeys(trial for rung in reversed(climbed) for trial in rung.by_trial)
    header = ["Trial", "Method", *(f"{rung.label} [%]" for rung in climbed)]

    def cell(rung: RungClimbed, trial: int) -> str:
        text = f"{100 * rung.by_trial[trial]:.2f}" if trial in rung.by_trial else ""
        return element("strong", text) if trial in rung.kept else text

    body = [[str(trial), methods.get(trial, ""), *(cell(rung, trial) for rung in climbed)] for trial in order]
    note = "Robust accuracy on held-out images, means over seeds. Bold: kept for the next column, or for confirmation."
    return [table(header, body, left=frozenset({1})), element("p", note, class_="note")]


def _protocol_note(protocol: Protocol, *, ranked: bool) -> Markup:
    cumulative = " Attacks are cumulative from left to right, the last column is the worst case over all." * (
        len(stages(protocol.attack)) > 1
    )
    marks = " Bold: the best of a column and all within its standard deviation." * ranked
    return element(
        "p",
        f"Accuracy in percent on {protocol.samples} images of {protocol.data}/{protocol.split}, "
        f"{protocol.checkpoint} epoch, {attack_label(protocol.attack)} at ε = {protocol.epsilon}; mean ± sample "
        f"standard deviation over n seeds.{cumulative}{marks} Best − last: points of held-out PGD-10 accuracy between "
        "the best and the last epoch, what robust overfitting costs. Protocol: ",
        element("code", protocol.key),
        class_="note",
    )


def all_trials(study: Study, rows: Sequence[TrialRow]) -> Markup:
    """The table of every trial, folded away."""
    heading = element("h2", "All trials")
    if not rows:
        return element("section", heading, element("p", "No trial has been started yet.", class_="none"))
    # The method has its own column; everything else the space varies gets one by its short name.
    paths = [path for path in dict.fromkeys(path for row in rows for path in row.values) if path != "method.name"]
    # Long names may break after a dot.
    named = [name.replace(".", ".\u200b") for name in short_names(paths).values()]
    wanted = study.search.objectives
    accuracies = [f"{_OBJECTIVES[name]} [%]" for name in wanted]
    constraints = ["Constraints"] if study.search.constraints else []
    header = ["Trial", "Method", *named, *accuracies, "Overfitting", *constraints, "Epochs", "State"]
    body = [
        [
            str(row.trial), row.method, *(_value(row.values[path]) if path in row.values else "" for path in paths),
            *(str(row.objectives[name]) if name in row.objectives else "" for name in wanted),
            row.overfitting, *(row.constraints for _ in constraints), f"{row.epochs}/{row.planned_epochs}", _state(row),
        ]
        for row in rows
    ]  # fmt: skip
    words = frozenset(map(header.index, ("Method", "Overfitting", *constraints, "State")))
    over = f", mean ± sample standard deviation over {study.search.seeds} seeds" if study.search.seeds > 1 else ""
    note = element(
        "p", f"Objectives are held-out accuracies at the {study.search.checkpoint} epoch{over}; epochs count from 1. ",
        link("trials.csv", "CSV"), class_="note",
    )  # fmt: skip
    summary = element("summary", f"{len(rows)} trials")
    return element("section", heading, element("details", summary, table(header, body, left=words), note))


def _state(row: TrialRow) -> str:
    explained = row.state in ("stopped", "failed") and row.reason
    return join([row.state, element("span", row.reason, class_="reason")]) if explained else row.state


def study_file(text: str) -> Markup:
    """The study as it was started, folded away."""
    details = element("details", element("summary", STUDY_FILE), element("pre", text))
    return element("section", element("h2", "The study"), details)


def citations() -> Markup:
    """The papers whose methods these are."""
    entries = [
        element(
            "p",
            element("strong", name),
            f": {text} ",
            element("a", f"arXiv:{number}", href=f"https://arxiv.org/abs/{number}"),
        )
        for name, text, number in _CITATIONS
    ]
    return element("section", element("h2", "How to cite"), *entries)


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
