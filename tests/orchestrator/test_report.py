"""The report of a small made-up study: its numbers, its files, its page."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.pages.csv_rows import to_csv
from orchestrator.records.pareto import pareto_indices
from orchestrator.records.runs import Run
from orchestrator.records.study_folder import create_study_folder, open_study_folder
from orchestrator.report.curves import onset_text
from orchestrator.report.held_out import held_out_points
from orchestrator.report.labels import Strengths, epsilon_text, method_label, short_names
from orchestrator.report.page import write_report
from orchestrator.report.summary import what_was_run
from orchestrator.report.tables import Spread, by_protocol, results, trial_rows
from search_spaces.study import parse_study
from tests.orchestrator.made_up import EPOCHS, counts, evaluation, lengthened, made_up_study, said, write_study
from trainers import catalog
from trainers.config import apply_values, parse
from trainers.origin import Origin
from trainers.records import EpochRecord

VOID = {"meta", "link", "br", "img"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[Run]:
    return open_study_folder(folder).runs()


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report(open_study_folder(folder)).read_text()


def test_a_spread_is_mean_and_sample_deviation_in_percent() -> None:
    spread = Spread.of([0.43, 0.47])
    assert spread.mean == pytest.approx(0.45)
    assert spread.deviation == pytest.approx(0.04 / 2**0.5)
    assert str(spread) == "45.00 ± 2.83"
    assert str(Spread.of([0.4537])) == "45.37"


def test_one_seed_that_collapsed_is_a_collapse_of_its_trial_and_a_confirmation_is_none(runs: list[Run]) -> None:
    fallen, stands = (next(run for run in runs if (run.trial, run.kind) == (number, "trial")) for number in (0, 4))
    second = replace(stands, trial=0, kind="repeat", seeds=2, experiment=stands.experiment.with_seed(1))
    (point,) = held_out_points(made_up_study(), [replace(fallen, seeds=2), second])
    assert point.collapsed
    told = said(made_up_study(), [stands, replace(fallen, kind="confirmation")])
    assert told[0] == "No overfitting was detected in 1 trial."


def test_headlines_say_of_how_many_seeds_a_number_is(runs: list[Run]) -> None:
    told = " ".join(said(made_up_study(), runs))
    assert "under AutoAttack at ε = 8/255 (mean ± sample standard deviation of n = 2 seeds)." in told
    assert "under PGD-20 at ε = 8/255 (n = 1 seed)." in told


def test_results_average_seeds_and_mark_what_is_within_one_deviation_of_the_best(runs: list[Run]) -> None:
    groups = list(by_protocol(results(runs)).values())
    rows = next(group for group in groups if group[0].protocol.attack == "autoattack")
    assert [(row.trial, row.method, row.epsilon, row.seeds) for row in rows] == [
        (1, "FGSM + DER", "16/255", (1, 2)),
        (2, "WEAT-ADV", "8/255", (1, 2)),
    ]
    assert rows[0].strengths == Strengths(None, 30.0, 0.1)
    assert rows[1].strengths == Strengths(7.0, None, None)
    assert [str(row.robust) for row in rows] == ["45.00 ± 2.83", "44.50 ± 0.71"]
    assert [str(row.accuracies["clean"]) for row in rows] == ["82.00 ± 2.83", "90.50 ± 0.71"]
    assert rows[0].best == {"apgd-ce", "apgd-t", "fab-t", "square"}
    assert rows[1].best == {"clean", "apgd-ce", "apgd-t", "fab-t", "square"}
    assert [(row.flat()["clean/best"], row.flat()["square/best"]) for row in rows] == [(False, True), (True, True)]


def test_the_gap_is_what_is_lost_between_the_best_and_the_last_epoch(runs: list[Run]) -> None:
    confirmed = [run for run in runs if run.kind == "confirmation" and run.trial == 1]
    curves = ([0.2, 0.5, 0.4], [0.3, 0.3, 0.35])
    changed = [
        replace(run, records=tuple(EpochRecord(e, 0.0, {"val/pgd10_accuracy": v}) for e, v in enumerate(values)))
        for run, values in zip(confirmed, curves, strict=True)
    ]
    (row,) = results(changed)
    assert str(row.gap) == "5.00 ± 7.07"
    assert row.flat()["best_last_gap/mean"] == pytest.approx(0.05)
    assert next(row for row in results(runs) if row.trial == 1).gap is None


def test_other_protocols_are_kept_apart_and_alone_nothing_is_best(runs: list[Run]) -> None:
    alone = [row for row in results(runs) if row.protocol.attack == "pgd20"]
    assert [(row.trial, str(row.robust), row.best) for row in alone] == [(4, "40.00", frozenset())]


def test_trial_table_says_where_overfitting_set_in(runs: list[Run]) -> None:
    rows = {row.trial: row for row in trial_rows(made_up_study(), runs)}
    assert rows[0].overfitting == "catastrophic at epoch 6 (confirmed)"
    assert rows[1].overfitting == ""
    assert rows[3].state == "running"
    assert (rows[3].epochs, rows[3].planned_epochs, rows[3].objectives) == (4, EPOCHS, {})
    assert {name: spread.mean for name, spread in rows[1].objectives.items()} == {
        "val/clean_accuracy": 0.8,
        "val/pgd10_accuracy": 0.45,
    }


def test_what_the_space_varies_takes_no_column_of_the_table_whatever_it_is_called(runs: list[Run]) -> None:
    row = trial_rows(made_up_study(), runs)[0]
    plain = replace(row, values={"attack.epsilon": 0.1}).flat()
    line = replace(row, values={"attack.epsilon": 0.1, "method": "row one", "epochs": 3}).flat()
    assert line == plain | {"space.method": "row one", "space.epochs": 3}


def test_csv_has_every_column_once_and_round_trips() -> None:
    text = to_csv([{"a": 1, "b": 'x,"y"'}, {"b": 0.1, "c": None}])
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"a": "1", "b": 'x,"y"', "c": ""},
        {"a": "", "b": "0.1", "c": ""},
    ]


def test_pareto_front_keeps_what_nothing_dominates(runs: list[Run]) -> None:
    assert pareto_indices([(1, 1), (2, 0), (1, 0), (2, 0), (0, 3)]) == {0, 1, 3, 4}
    front = [(point.trial, point.collapsed) for point in held_out_points(made_up_study(), runs) if point.on_front]
    assert front == [(0, True), (1, False), (2, False)]


def test_with_one_objective_the_other_accuracy_comes_from_the_epoch_that_counts(runs: list[Run]) -> None:
    content = made_up_study().model_dump(mode="json")
    content["space"] = {part.pop("path"): {k: v for k, v in part.items() if v is not None} for part in content["space"]}
    content["search"] |= {"objectives": ["val/pgd10_accuracy"], "checkpoint": "last"}
    one = [run for run in runs if run.key == "trial-0000"]
    assert one[0].objectives == (0.9, 0.38)
    found = held_out_points(parse_study(content), one)[0]
    assert (found.clean, found.robust) == (pytest.approx(0.6 + 0.02 * (EPOCHS - 1)), 0.9)


def test_methods_are_named_by_what_was_run() -> None:
    study = made_up_study()
    assert method_label(study.experiment_for({"method.name": "fgsm", "method.regularizer": "der"})) == "FGSM + DER"
    assert method_label(study.experiment_for({"method.name": "weat_adv", "method.weighting": None})) == (
        "WEAT-ADV (weighting none)"
    )
    named = {name: method_label(study.experiment_for({"method.name": name})) for name in catalog.PRESETS}
    assert len(set(named.values())) == len(named)
    assert (named["grad_align"], named["aaer"], named["mail_at_der"]) == ("GradAlign", "AAER", "MAIL-AT + DER")
    bare = study.experiment_for({"method.name": "aaer", "method.regularizer": None})
    assert method_label(bare) == "AAER without aaer"


def test_a_method_of_another_package_is_named_by_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_up_study()
    monkeypatch.setitem(catalog.PRESETS, "both", replace(catalog.PRESETS["sat"], label="CE-both"))
    monkeypatch.setitem(catalog.PRESETS, "plain", replace(catalog.PRESETS["sat"], label=""))
    names = [method_label(study.experiment_for({"method.name": name})) for name in ("both", "plain")]
    assert names == ["CE-both", "plain"]


@pytest.mark.parametrize(("written", "shown"), [("8/255", "8/255"), (0.12, "0.12"), (0.031372549019607845, "0.03137")])
def test_epsilon_is_shown_as_it_was_written(written: str | float, shown: str) -> None:
    assert epsilon_text(made_up_study().experiment_for({"attack.epsilon": written})) == shown


def test_short_names_stay_unique() -> None:
    assert short_names(["method.beta", "method.regularizer.beta", "attack.epsilon", "seed"]) == {
        "method.beta": "method.beta",
        "method.regularizer.beta": "regularizer.beta",
        "attack.epsilon": "attack.epsilon",
        "seed": "seed",
    }


def test_headlines_count_collapses_and_name_the_best(runs: list[Run]) -> None:
    found = said(made_up_study(), runs)
    assert found[0] == "Catastrophic overfitting in 1 of 3 FGSM, 0 of 1 FGSM + DER, 0 of 1 WEAT-ADV trials."
    assert found[1].startswith(
        "Most robust on held-out images: trial 1 (FGSM + DER, training ε = 16/255) with 45.00\u00a0%"
    )
    assert "trial 1 (FGSM + DER, training ε = 16/255) with 45.00 ± 2.83\u00a0% under AutoAttack" in found[2]


def test_who_is_not_above_chance_is_not_called_the_most_robust_held_out(runs: list[Run]) -> None:
    def best(robust: float) -> str:
        ended = [replace(run, objectives=(0.9, robust)) if run.objectives else run for run in runs]
        return said(made_up_study(), ended)[1]

    chance = "No trial is more robust on held-out images than chance (10.00\u00a0%): at best "
    assert best(0.1).startswith(f"{chance}10.00\u00a0% under PGD-10 at ε = 8/255.")
    assert best(0.02).startswith(f"{chance}2.00\u00a0%")
    assert best(0.11).startswith("Most robust on held-out images: trial ")


@pytest.mark.parametrize(
    ("robust", "begins"),
    [
        (10, "No trial is more robust on 100 test images than chance (10.00\u00a0%): at best 10.00\u00a0% under Auto"),
        (11, "Most robust on 100 test images: trial 1 "),
    ],
)
def test_nor_on_the_test_set(robust: int, begins: str, runs: list[Run]) -> None:
    tested = next(run for run in runs if run.kind == "confirmation")
    found = replace(tested, evaluation=evaluation(tested.experiment.digest(), counts(80, robust)))
    assert said(made_up_study(), [runs[0], found])[-1].startswith(begins)


def test_a_total_that_was_lowered_below_what_was_started_is_told_apart(runs: list[Run]) -> None:
    def told(trials: int) -> str:
        study = made_up_study()
        fewer = study.model_copy(update={"search": study.search.model_copy(update={"trials": trials})})
        return what_was_run(fewer, runs, [])

    assert "6 of 6 trials (4 complete, 1 failed, 1 running), proposed by" in told(6)
    assert "6 trials, of 5 wanted (4 complete, 1 failed, 1 running), proposed by" in told(5)


def test_a_study_is_dated_by_its_own_epochs_and_not_by_those_that_it_took_over(runs: list[Run]) -> None:
    own, taken = runs[1], replace(runs[2], origin=Origin("study", "other/trials/0002", EPOCHS))
    long_ago = tuple(replace(record, time=1.5e9) for record in taken.records)
    told = what_was_run(made_up_study(), [own, replace(taken, records=long_ago)], [])
    assert told == what_was_run(made_up_study(), [own, taken], [])
    assert f"summed over {EPOCHS} epochs" in told
    assert "2017" not in told


def test_a_jump_of_energy_without_a_collapse_is_a_warning_beside_the_headlines(runs: list[Run]) -> None:
    jumping = lengthened(runs[1], [-0.1] * 5 + [0.6] + [-0.1] * 5)
    assert said(made_up_study(), [jumping])[:2] == [
        "No overfitting was detected in 1 trial.",
        "ΔE(x) jumped up while robust accuracy stood, a warning only: trial 1 (epoch 6).",
    ]
    torn = replace(jumping, records=jumping.records[1:])
    assert said(made_up_study(), [torn])[0] == "No overfitting was detected in 1 trial."


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    reader = Reader(page)
    assert reader.open == []
    assert reader.complaints == []
    assert len(reader.ids) == len(set(reader.ids))
    assert {target for target in reader.links if "://" in target} == {
        "https://arxiv.org/abs/2407.06315",
        "https://arxiv.org/abs/2505.22486",
    }
    # Within the SVG: only references to elements of the same figure, all of them there.
    assert all(reference.removeprefix("#") in reader.ids for reference in reader.references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page


def test_hostile_text_stays_text(page: str) -> None:
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert('x')&lt;/script&gt;" in page


def test_the_page_shows_the_numbers(page: str) -> None:
    assert "<strong>45.00 ± 2.83</strong>" in page
    assert "<td>82.00 ± 2.83</td>" in page
    assert "catastrophic at epoch 6 (confirmed)" in page
    assert "digits/test n=100 autoattack ε=8/255 best seed=0 shard=50 batch=25 float32" in page
    assert "neither averaged nor ranked together" in page
    assert "6 of 8 trials (4 complete, 1 failed, 1 running)" in page
    assert "orchestrator sweep study.yaml" in page
    assert "Confirmation runs without an evaluation yet: 1." in page


def test_files_lie_beside_the_page_and_a_second_report_is_the_same(folder: Path, page: str) -> None:
    names = ["accuracy_over_epsilon", "energy_curves", "parameter_importance", "pareto_front"]
    expected = {f"{name}.{kind}" for name in names for kind in ("svg", "csv")} | {"results.csv", "trials.csv"}
    before = {file.name: file.read_bytes() for file in (folder / "figures").iterdir()}
    assert set(before) == expected
    lines = list(csv.DictReader(io.StringIO(before["pareto_front.csv"].decode())))
    assert [(line["trial"], line["clean"], line["robust"]) for line in lines][1] == ("1", "0.8", "0.45")
    tested = list(csv.DictReader(io.StringIO(before["results.csv"].decode())))
    assert float(tested[0]["square/std"]) == pytest.approx(0.04 / 2**0.5)
    assert write_report(open_study_folder(folder)).read_text() == page
    assert {file.name: file.read_bytes() for file in (folder / "figures").iterdir()} == before


def test_a_study_that_has_not_begun_has_a_report(tmp_path: Path) -> None:
    create_study_folder(tmp_path / "empty", made_up_study())
    page = write_report(open_study_folder(tmp_path / "empty")).read_text()
    for line in ("No trial of 8 has been started yet.", "No epoch has been recorded yet.", "No trial is complete yet."):
        assert line in page
    assert Reader(page).complaints == []


def test_a_study_whose_trials_all_ended_without_a_result_does_not_promise_one(runs: list[Run]) -> None:
    study = made_up_study()
    tried = [replace(runs[0], trial=place, state="failed", objectives=()) for place in range(8)]
    assert said(study, tried)[-1] == ("No trial has a result that counts: 8 failed. The table of all trials says why.")
    assert said(study, tried[1:])[-1] == "No trial is complete yet."
    running = [replace(tried[0], state="running"), *tried[1:]]
    assert said(study, running)[-1] == "No trial is complete yet."


def test_a_torn_curve_has_no_onset(runs: list[Run]) -> None:
    assert onset_text(replace(runs[0], records=runs[0].records[1:])) == ""


def test_an_onset_inside_an_epoch_is_told_by_its_step(runs: list[Run]) -> None:
    checks = {
        f"check/{step}/{name}": 0.5 for step in ("0200", "0400") for name in ("pgd5_accuracy", "delta_energy/mean")
    }
    last = runs[0].records[5]
    fallen = replace(last, metrics={**last.metrics, **checks, "check/0400/pgd5_accuracy": 0.1})
    run = replace(runs[0], records=(*runs[0].records[:5], fallen))
    assert onset_text(run) == "catastrophic at epoch 6, step 400 (confirmed)"


def test_thresholds_of_twins_in_one_folder_are_their_own(runs: list[Run]) -> None:
    rules = {"evaluation.catastrophic.above_chance": 0.9}
    twin = replace(runs[0], experiment=parse(apply_values(runs[0].experiment.to_dict(), rules)))
    assert (twin.folder, twin.experiment.digest()) == (runs[0].folder, runs[0].experiment.digest())
    assert [bool(onset_text(run)) for run in (runs[0], twin)] == [True, False]


class Reader(HTMLParser):
    """Follows what is open, and collects ids and everything that points somewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.complaints: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.references: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._collect(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._collect(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.complaints.append(f"</{tag}> at {self.getpos()}")

    def _collect(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("src", "srcset", "action", "data") or tag in ("script", "iframe", "object", "img"):
                self.complaints.append(f"<{tag} {name}={value}>")
            elif tag == "link" and name == "href" and value != "data:,":
                self.complaints.append(f"<link href={value}>")
            elif name == "href" and tag == "a":
                self.links.append(str(value))
            elif name.endswith("href") and tag != "link":
                self.references.append(str(value))
