"""What may share a ranking does; what may not is shown apart, with the reason."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli import main
from orchestrator.commands.compare import differences, rankings
from orchestrator.records.study_folder import create_study_folder
from orchestrator.report.labels import Strengths
from orchestrator.report.tables import ResultRow, Spread
from orchestrator.report.terminal import print_results
from search_spaces.study import parse_study
from tests.orchestrator.made_up import confirm_run, end_run
from trainers.evaluation.result import EvaluationResult, Flags, Protocol

PROTOCOL = Protocol("digits 32x32", "test", 100, "8/255", "autoattack", 0, 50, 25, "best")
ELSEWHERE = replace(PROTOCOL, epsilon="4/255", samples=50)


def row(trial: int, robust: float, protocol: Protocol = PROTOCOL, deviation: float | None = None) -> ResultRow:
    accuracies = {"clean": Spread(0.9, None, 1), "square": Spread(robust, deviation, 1)}
    return ResultRow(trial, "FGSM", Strengths(None, None, None), "8/255", protocol, (0,), accuracies)


def test_one_protocol_is_one_ranking_over_studies():
    (ranking,) = rankings([("a", [row(0, 0.4), row(1, 0.5)]), ("b", [row(0, 0.45)])])
    assert list(zip(ranking.studies, (r.trial for r in ranking.rows), strict=True)) == [("a", 1), ("b", 0), ("a", 0)]
    assert ["square" in r.best for r in ranking.rows] == [True, False, False]
    assert ranking.apart == ""


def test_ties_are_marked_across_studies():
    (ranking,) = rankings([("a", [row(0, 0.50, deviation=0.02)]), ("b", [row(0, 0.49), row(1, 0.47)])])
    assert ["square" in r.best for r in ranking.rows] == [True, True, False]


def test_another_protocol_is_apart_and_says_why():
    found = rankings([("a", [row(0, 0.9, ELSEWHERE)]), ("b", [row(0, 0.4)]), ("c", [row(0, 0.3)])])
    assert [(ranking.studies, ranking.protocol) for ranking in found] == [(("b", "c"), PROTOCOL), (("a",), ELSEWHERE)]
    assert found[1].apart == differences(PROTOCOL, ELSEWHERE) == "samples 50, not 100, epsilon 4/255, not 8/255"


def write(folder: Path, standing: int | None, epsilon: str = "8/255", attack: str = "square") -> Path:
    """A study with one confirmed trial, of which so many of 100 images still stand."""
    study = parse_study({"name": folder.name, "experiment": {"data": "digits"}, "search": {"trials": 1}})
    journal = create_study_folder(folder, study)
    if standing is not None:
        experiment = study.experiment_for({"seed": 1})
        run = confirm_run(journal, 0, 1, {}, experiment)
        flags = Flags(0, 100, {"clean": (True,) * 100, attack: tuple(image < standing for image in range(100))})
        EvaluationResult(replace(PROTOCOL, epsilon=epsilon, attack=attack), experiment.digest(), 1, flags).save(
            run / "evaluation.json"
        )
        end_run(journal, "0000-seed1", "complete", "")
    return folder


def test_the_verb_prints_rankings_and_what_is_not_confirmed(tmp_path, capsys):
    folders = [write(tmp_path / "one", 40), write(tmp_path / "two", 50), write(tmp_path / "three", 60, "4/255")]
    folders.append(write(tmp_path / "empty", None))
    assert main(["compare", *map(str, folders)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("two") < printed.index("one") < printed.index("not comparable with the first table")
    assert "epsilon 4/255, not 8/255" in printed
    assert "empty: nothing is confirmed yet" in printed


def test_the_verb_prints_json_for_machines(tmp_path, capsys):
    assert (
        main(["compare", str(write(tmp_path / "one", 40)), str(write(tmp_path / "two", 50)), "--format", "json"]) == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert [(r["study"], r["rank"], r["square/mean"]) for r in rows] == [("two", 1, 0.5), ("one", 2, 0.4)]


def test_a_column_of_another_protocol_is_empty(tmp_path, capsys):
    studies = [str(write(tmp_path / "one", 40)), str(write(tmp_path / "two", 50, attack="pgd20"))]
    assert main(["compare", *studies, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["square/mean"], r["pgd20/mean"]) for r in rows] == [(None, 0.5), (0.4, None)]
    assert main(["compare", *studies, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(r["square/mean"], r["pgd20/mean"]) for r in lines] == [("", "0.5"), ("0.4", "")]


def test_studies_of_one_name_are_told_apart_wherever_their_paths_part(tmp_path, capsys):
    folders = [write(tmp_path / lab / "runs" / "q", standing) for lab, standing in (("one", 40), ("two", 50))]
    folders += [
        write(tmp_path / "q", 30),
        write(tmp_path / "other", 20),
        write(tmp_path / "empty", None).rename(tmp_path / "[bold]"),
    ]
    assert main(["compare", *map(str, folders), "--format", "json"]) == 0
    names = [row["study"] for row in json.loads(capsys.readouterr().out)]
    assert names == ["two/runs/q", "one/runs/q", f"{tmp_path.name}/q", "other"]
    assert main(["compare", *map(str, folders)]) == 0
    assert "[bold]: nothing is confirmed yet" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 124, 160])
def test_a_table_crops_no_number_whatever_the_terminal(width):
    accuracies = {
        stage: Spread(value, 0.0283, 3)
        for stage, value in zip(
            ("clean", "apgd-ce", "apgd-t", "fab-t", "square"), (0.82, 0.51, 0.46, 0.46, 0.45), strict=True
        )
    }
    rows = [
        ResultRow(trial, "N-FGSM + DER", Strengths(10.5, None, 0.25), "8/255", PROTOCOL, (1, 2, 3), accuracies)
        for trial in (0, 11)
    ]
    printed = io.StringIO()
    console = Console(file=printed, width=width, color_system=None)
    print_results(rows, console, studies=["robust_overfitting_small", "another_study_of_a_long_name"])
    text = printed.getvalue()
    assert "…" not in text
    lines = text.splitlines()[2:]
    assert max(map(len, lines)) <= width
    assert text.count("82.00 ± 2.83") == text.count("45.00 ± 2.83") == 2
    assert (text.count("51.00 ± 2.83") == 2) == (width == 160)
    assert text.count("10.5") == text.count("0.25") == 2


@pytest.mark.parametrize("case", ["empty", "twice", "elsewhere"])
def test_nothing_to_compare_is_bad_input(case, tmp_path, capsys):
    words = {
        "empty": [write(tmp_path / "empty", None)],
        "twice": [write(tmp_path / "one", 40)] * 2,
        "elsewhere": [tmp_path / "nowhere"],
    }[case]
    assert main(["compare", *map(str, words)]) == 2
    says = {"empty": "nothing is confirmed", "twice": "given twice", "elsewhere": "not a study folder"}[case]
    assert says in capsys.readouterr().err
