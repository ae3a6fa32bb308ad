"""Decisions about trials come from the journal, and a new driver takes none of them again or otherwise."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.host import disk
from orchestrator.host.interrupt import Interrupt
from orchestrator.records.events import Compared, Stopped
from orchestrator.records.journal import Journal
from orchestrator.records.runs import trial_key
from orchestrator.records.savings import savings
from orchestrator.records.study_folder import create_study_folder
from orchestrator.slots.messages import Report
from orchestrator.study.proposals import Outcome
from search_spaces.stopping import Pruning, Stopping
from search_spaces.study import Resources, Study, parse_study
from tests.orchestrator.curves import records
from tests.orchestrator.made_up import confirm_run, end_run, propose_run, said
from trainers.origin import Origin
from trainers.records import append_record

pytest.importorskip("ray")

EPOCHS = 8
ASHA = Stopping(prune=Pruning(rule="asha", grace_epochs=2))
COLLAPSE = [0.3, 0.5, 0.02, 0.01]


@pytest.fixture
def study() -> Study:
    return parse_study({"name": "s", "experiment": {"epochs": EPOCHS}, "space": {"method.name": ["fgsm", "sat"]}})


@pytest.fixture
def journal(tmp_path: Path, study: Study) -> Journal:
    return create_study_folder(tmp_path / "s", study)


class Trials:
    """Feeds curves to the rules epoch by epoch, as a study does."""

    def __init__(self, journal: Journal, study: Study, rules: Stopping) -> None:
        from orchestrator.study.early_stopping import StopDecisions

        self.study, self.stopping = study, StopDecisions(rules, journal)

    def stopped_at(self, number: int, curve: list[float], method: str = "fgsm", seed: int = 0) -> int | None:
        made, experiment = records(curve), self.study.experiment_for({"method.name": method})
        for count in range(1, len(made) + 1):
            stop = self.stopping.decide(trial_key(number, seed), experiment, made[:count])
            if stop is not None:
                return stop.epoch
        return None


def test_trials_are_compared_within_their_method_only(journal: Journal, study: Study) -> None:
    trials = Trials(journal, study, ASHA)
    for number in (0, 1, 2):
        assert trials.stopped_at(number, [0.1, 0.6 + number / 10, 0.8], "sat") is None
    assert trials.stopped_at(3, [0.1, 0.1, 0.1], "fgsm") is None  # the first of its method
    assert trials.stopped_at(4, [0.1, 0.2, 0.2], "sat") == 1
    compared = [event for event in journal.events() if isinstance(event, Compared)]
    assert {(event.group, event.epoch) for event in compared} == {("sat, bracket 0", 1), ("fgsm, bracket 0", 1)}
    assert [event.value for event in compared] == [0.6, 0.7, 0.8, 0.1, 0.2]


def test_the_first_epoch_may_be_compared(journal: Journal, study: Study) -> None:
    trials = Trials(journal, study, Stopping(prune=Pruning(rule="asha", grace_epochs=1)))
    assert [trials.stopped_at(number, [accuracy]) for number, accuracy in enumerate((0.5, 0.6, 0.7, 0.1))] == [
        None, None, None, 0
    ]  # fmt: skip


def test_runs_are_compared_with_those_of_the_same_seed(journal: Journal, study: Study) -> None:
    trials = Trials(journal, study, Stopping(prune=Pruning(rule="median", grace_epochs=2)))
    of_seeds = (0.9, 0.5, 0.1)  # the third is a hard one
    for number in (0, 1, 2):
        for seed, accuracy in enumerate(of_seeds):
            assert trials.stopped_at(number, [accuracy] * 3, seed=seed) is None
    assert [trials.stopped_at(3, [accuracy] * 3, seed=seed) for seed, accuracy in enumerate(of_seeds)] == [None] * 3
    assert [trials.stopped_at(4, [0.3] * 3, seed=seed) for seed in range(3)] == [1, 1, None]


def test_a_new_driver_decides_as_the_one_that_died_would_have(journal: Journal, study: Study) -> None:
    first = Trials(journal, study, ASHA)
    second_epoch = {0: 0.5, 1: 0.6, 2: 0.2, 3: 0.1, 4: 0.55}  # trials 0 to 2 have too few to be compared with
    fourth_epoch = {0: 0.5, 1: 0.4, 2: 0.9, 3: 0.9, 4: 0.45}
    curves = {number: [0.3, second_epoch[number], 0.6, fourth_epoch[number]] for number in range(5)}
    before = {number: first.stopped_at(number, curve) for number, curve in curves.items()}
    assert before == {0: None, 1: None, 2: None, 3: 1, 4: 3}
    events = journal.events()
    # Meanwhile others got there: compared now, trial 2 would be in the worse half.
    second = Trials(journal, study, ASHA)
    assert {number: second.stopped_at(number, curve) for number, curve in curves.items()} == before
    assert journal.events() == events


def test_an_epoch_that_nobody_judged_before_the_kill_is_judged_afterwards(journal: Journal, study: Study) -> None:
    from orchestrator.study.early_stopping import StopDecisions

    stopping = StopDecisions(Stopping(catastrophic=True), journal)
    made, experiment = records(COLLAPSE), study.experiment_for({"method.name": "fgsm"})
    stop = stopping.decide("trial-0000", experiment, made)  # epoch 3 is on disk as well: a group runs ahead
    assert stop is not None
    assert (stop.rule, stop.epoch) == ("catastrophic", 2)
    again = StopDecisions(Stopping(catastrophic=True), journal)
    assert again.decide("trial-0000", experiment, records([*COLLAPSE, 0.9, 0.9, 0.9, 0.9])) == stop
    assert [type(event) for event in journal.events()] == [Stopped]


def test_a_trial_is_stopped_once_however_often_it_is_asked_of_and_so_is_its_twin(
    journal: Journal, study: Study
) -> None:
    from orchestrator.study.early_stopping import StopDecisions

    stopping = StopDecisions(Stopping(catastrophic=True), journal)
    experiment = study.experiment_for({"method.name": "fgsm"})
    stop = stopping.decide("trial-0000", experiment, records(COLLAPSE))
    assert stop is not None
    for _ in range(2):
        stopping.inherit("trial-0001", "trial-0000")
        assert stopping.decide("trial-0000", experiment, records(COLLAPSE)) == stop
        assert stopping.decide("trial-0001", experiment, records(COLLAPSE[:2])) == stop
    stops = [(event.key, event.epoch) for event in journal.events() if isinstance(event, Stopped)]
    assert stops == [("trial-0000", 2), ("trial-0001", 2)]


@pytest.mark.parametrize("on_disk", [EPOCHS - 1, EPOCHS])
def test_a_collapse_before_the_last_epoch_stops_a_run_whether_or_not_that_is_on_disk(
    on_disk: int, journal: Journal, study: Study
) -> None:
    from orchestrator.study.early_stopping import StopDecisions

    made = records([0.5] * (EPOCHS - 2) + [0.01, 0.9])[:on_disk]
    stopping = StopDecisions(Stopping(catastrophic=True), journal)
    stop = stopping.decide("trial-0000", study.experiment_for({"method.name": "fgsm"}), made)
    assert stop is not None
    assert (stop.rule, stop.epoch) == ("catastrophic", EPOCHS - 2)


@pytest.mark.parametrize("on_disk", [EPOCHS - 1, EPOCHS])
def test_a_run_that_fell_behind_before_its_last_epoch_is_pruned_whether_or_not_that_is_on_disk(
    on_disk: int, journal: Journal, study: Study
) -> None:
    trials = Trials(journal, study, Stopping(prune=Pruning(rule="median", grace_epochs=EPOCHS - 1)))
    for number in range(3):
        assert trials.stopped_at(number, [0.5] * EPOCHS) is None
    stop = trials.stopping.decide("trial-0003", study.experiment_for({}), records([0.3] * EPOCHS)[:on_disk])
    assert stop is not None
    assert (stop.rule, stop.epoch) == ("prune", EPOCHS - 2)


@pytest.mark.parametrize("ends", [("on_trial_complete", {}), ("on_trial_error",)])
def test_records_are_held_for_trials_at_work_alone(
    ends: tuple[Any, ...], journal: Journal, study: Study, tmp_path: Path
) -> None:
    from orchestrator.study.early_stopping import StopDecisions, StoppingScheduler

    scheduler = StoppingScheduler(StopDecisions(Stopping(catastrophic=True), journal))
    config = {"run_dir": str(tmp_path), "key": "trial-0000", "experiment": study.experiment_for({}).to_dict()}
    trial = SimpleNamespace(config=config)
    end, *more = ends
    for count in (2, 3):
        append_record(tmp_path, *records(COLLAPSE)[count - 2 : count])
        decision = scheduler.on_trial_result(None, trial, {"epoch": count - 1})
        assert decision == ("CONTINUE", "STOP")[count - 2]
        assert len(scheduler._followers) == 1
        getattr(scheduler, end)(None, trial, *more)
        assert scheduler._followers == {}
        getattr(scheduler, end)(None, trial, *more)


def test_a_run_is_judged_by_the_epochs_that_were_reported_though_later_ones_are_on_disk(
    journal: Journal, study: Study, tmp_path: Path
) -> None:
    from orchestrator.study.early_stopping import StopDecisions, StoppingScheduler

    scheduler = StoppingScheduler(StopDecisions(Stopping(catastrophic=True), journal))
    config = {"run_dir": str(tmp_path), "key": "trial-0000", "experiment": study.experiment_for({}).to_dict()}
    append_record(tmp_path, *records(COLLAPSE))
    results: list[dict[str, Any]] = [{}, {"epoch": 0}, {"epoch": 1}, {"epoch": 2}]
    decisions = [scheduler.on_trial_result(None, SimpleNamespace(config=config), result) for result in results]
    assert decisions == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP"]


def test_a_run_whose_records_have_a_gap_is_not_judged_by_them(journal: Journal, study: Study) -> None:
    from orchestrator.study.early_stopping import StopDecisions

    made = records([0.5, 0.5, 0.5, 0.01, 0.01])
    experiment = study.experiment_for({"method.name": "fgsm"})
    stopping = StopDecisions(Stopping(catastrophic=True, prune=Pruning(rule="median", grace_epochs=1)), journal)
    assert stopping.decide("trial-0000", experiment, [*made[:1], *made[2:]]) is None
    assert journal.events() == []
    assert stopping.decide("trial-0000", experiment, made) is not None


def test_a_run_that_got_to_its_end_is_not_stopped(journal: Journal, study: Study) -> None:
    from orchestrator.study.early_stopping import StopDecisions

    stopping = StopDecisions(Stopping(catastrophic=True), journal)
    made = records([0.5] * (EPOCHS - 1) + [0.01])
    assert stopping.decide("trial-0000", study.experiment_for({"method.name": "fgsm"}), made) is None


def judged(study: Study, folder: Path, report: Report, interrupt: Interrupt | None = None) -> Outcome | None:
    from orchestrator.study.endings import judge_run

    return judge_run(report, study.experiment_for({}), folder, study, interrupt or Interrupt(print))


@pytest.mark.parametrize(("checkpoint", "robust"), [("best", 0.7), ("last", 0.6)])
def test_a_run_at_its_end_counts_by_the_epoch_that_is_asked_for(
    study: Study, tmp_path: Path, checkpoint: str, robust: float
) -> None:
    chosen = parse_study({**study.to_raw(), "search": {"checkpoint": checkpoint}})
    append_record(tmp_path, *records([0.3, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6]))
    outcome = judged(chosen, tmp_path, {"done": True})
    assert outcome is not None
    assert (outcome.state, outcome.objectives) == ("complete", (0.9, robust))


def test_a_run_fails_by_its_own_error_or_by_an_objective_that_is_no_number(study: Study, tmp_path: Path) -> None:
    for accuracies, report, reason in (
        ([0.5] * EPOCHS, {"failure": "no memory"}, "no memory"),
        ([], {}, "it ended before its last epoch"),
        ([math.nan] * EPOCHS, {"done": True}, "objectives are not finite: (0.9, nan)"),
    ):
        folder = tmp_path / reason[:5]
        folder.mkdir()
        append_record(folder, *records(accuracies))
        outcome = judged(study, folder, report)  # type: ignore[arg-type]
        assert outcome is not None
        assert (outcome.state, outcome.reason, outcome.objectives) == ("failed", reason, ())


def test_a_run_goes_on_later_after_an_interruption_a_crash_or_a_full_disk_which_ends_the_study(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_record(tmp_path, *records([0.5] * (EPOCHS - 1)))
    interrupt = Interrupt(lambda _: None)
    assert judged(study, tmp_path, {"crashed": True}, interrupt) is None
    interrupt.check()
    assert judged(study, tmp_path, {"disk_full": "/scratch"}, interrupt) is None
    with pytest.raises(OSError, match="No space left on device: '/scratch'"):
        interrupt.check()
    assert judged(study, tmp_path, {}, interrupt) is None
    monkeypatch.setattr(disk, "_LEAST_FREE", 1 << 62)
    with pytest.raises(OSError, match="No space left on device"):
        judged(study, tmp_path, {"crashed": True})


@pytest.mark.parametrize(("checkpoint", "objectives"), [("best", (0.9, 0.5)), ("last", ())])
def test_a_collapsed_trial_counts_only_where_its_best_epoch_does(
    study: Study, checkpoint: str, objectives: tuple[float, ...]
) -> None:
    from orchestrator.study.endings import stopped_outcome
    from orchestrator.study.stop_rules import Stop

    chosen = parse_study({**study.to_raw(), "search": {"checkpoint": checkpoint}})
    made = records([*COLLAPSE, 0.9])  # the last epoch came after the decision
    outcome = stopped_outcome(Stop("catastrophic", 2, "because"), made, chosen)
    assert (outcome.state, outcome.reason, outcome.objectives) == ("stopped", "because", objectives)
    assert stopped_outcome(Stop("prune", 2, "behind"), made, chosen).objectives == ()


def test_with_one_objective_optuna_hears_of_it_epoch_by_epoch(study: Study) -> None:
    from orchestrator.study.endings import stopped_outcome
    from orchestrator.study.stop_rules import Stop

    one = parse_study({**study.to_raw(), "search": {"objectives": ["val/pgd10_accuracy"]}})
    stop = Stop("catastrophic", 2, "because")
    assert stopped_outcome(stop, records([*COLLAPSE, 0.9]), one).curve == tuple(COLLAPSE[:3])
    assert stopped_outcome(stop, records(COLLAPSE), study).curve == ()


def test_savings_are_the_epochs_not_run_at_the_trials_own_pace(journal: Journal, study: Study) -> None:
    for number, epochs in enumerate((EPOCHS, 3, 5)):
        folder = propose_run(
            journal, number, {}, study.experiment_for({"method.name": ("fgsm", "sat", "fgsm")[number]})
        )
        for record in records([0.5] * epochs):
            append_record(folder, record)
    end_run(journal, "trial-0000", "complete", "", [0.9, 0.5])
    for number in (1, 2):
        journal.append(Stopped(key=trial_key(number), rule="catastrophic", epoch=2, reason=""))
        end_run(journal, trial_key(number), "stopped", "because")
    # Epochs took 2, 3, 4, … seconds: medians 3 and 4; 5 and 3 epochs were not run, on two workers of two CPUs.
    two = study.model_copy(update={"resources": Resources(workers=2, cpus_per_worker=2)})
    (saving,) = savings(journal.runs(), two)
    assert (saving.runs, saving.epochs, saving.of_epochs, saving.seconds) == (2, 8, 24, (5 * 3 + 3 * 4) * 4)
    assert str(saving) == "Stopped early by catastrophic: 2 runs; 8 of 24 epochs and 108 CPU-seconds saved"
    assert f"{str(saving).replace('108', '27')}." in said(study, journal.runs())  # the study has one CPU a trial
    gpus = Resources(workers=2, cpus_per_worker=2, gpus_per_worker=0.5)
    (on_gpus,) = savings(journal.runs(), study.model_copy(update={"resources": gpus}))
    assert (on_gpus.seconds, on_gpus.processor) == ((5 * 3 + 3 * 4) * 1.0, "GPU")


def test_every_rule_saves_what_it_stopped_and_of_the_trials_alone(journal: Journal, study: Study) -> None:
    experiment = study.experiment_for({})
    for number, (rule, epochs) in enumerate([("catastrophic", 3), ("prune", 6)]):
        append_record(propose_run(journal, number, {}, experiment), *records([0.5] * epochs))
        journal.append(Stopped(key=trial_key(number), rule=rule, epoch=epochs - 1, reason=""))
        end_run(journal, trial_key(number), "stopped", "because")
    append_record(confirm_run(journal, 0, 1, {}, experiment), *records([0.5] * EPOCHS))
    assert [
        (saving.how, saving.runs, saving.epochs, saving.of_epochs) for saving in savings(journal.runs(), study)
    ] == [
        ("Stopped early by catastrophic", 1, EPOCHS - 3, 2 * EPOCHS),
        ("Stopped early by prune", 1, EPOCHS - 6, 2 * EPOCHS),
    ]


def test_a_confirmation_saves_at_the_rate_of_its_own_workers(journal: Journal, study: Study) -> None:
    wide = study.model_copy(update={"confirm": study.confirm.model_copy(update={"workers": 4})})
    experiment = study.experiment_for({"method.name": "sat"})
    append_record(
        confirm_run(journal, 0, 1, {}, experiment, Origin("prefix", "0001-seed1", 3)), *records([0.5] * EPOCHS)
    )
    (saving,) = savings(journal.runs(), wide)
    assert (saving.epochs, saving.seconds) == (3, (2 + 3 + 4) * 4)
