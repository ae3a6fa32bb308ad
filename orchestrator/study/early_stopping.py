"""Decides for every trial, epoch by epoch, whether it stops; the journal keeps each decision and what it rests on.

After a kill, decisions and comparisons come back from the journal, and epochs that no one judged are judged then, from
the trial's records: no trial is decided twice or differently. Nor does it matter who computed a run: one that
`search.reuse` takes over, or that is a twin of another, is judged epoch by epoch as if it had run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler

from orchestrator.records.events import Compared, Stopped
from orchestrator.records.journal import Journal
from orchestrator.records.runs import trial_key, trial_number
from orchestrator.study.stop_rules import Stop, overfitting_stop, pruning_stop
from orchestrator.study.tuning import DriverOnly
from search_spaces.stopping import Stopping
from trainers.config import Experiment, parse
from trainers.diagnostics.overfitting import ROBUST_ACCURACY, are_whole
from trainers.records import EpochRecord, RecordsFollower


class StopDecisions:
    """The rules of one study and what they have decided."""

    def __init__(self, rules: Stopping, journal: Journal) -> None:
        self._rules = rules
        self._journal = journal
        self._judged: dict[str, int] = {}
        self._stops: dict[str, Stop] = {}
        # (group, epoch) -> robust accuracy by key, in the order in which trials got there
        self._compared: dict[tuple[str, int], dict[str, float]] = {}
        for event in journal.events():
            if isinstance(event, Compared):
                self._compared.setdefault((event.group, event.epoch), {})[event.key] = event.value
            elif isinstance(event, Stopped):
                self._stops[event.key] = Stop(event.rule, event.epoch, event.reason)

    def decide(self, key: str, experiment: Experiment, records: Sequence[EpochRecord]) -> Stop | None:
        """Whether a trial stops, by its records, and after which of its epochs but the last.

        Not if they have a gap, as where an unreadable line was taken out by hand: places would not be epochs.
        """
        if key in self._stops:
            return self._stops[key]
        if not are_whole(records):
            return None
        # All of them may be on disk, of a group that ran ahead when the driver died; the last leaves nothing to stop.
        newest = min(len(records), experiment.epochs - 1)
        for count in range(self._judged.get(key, 0) + 1, newest + 1):
            seen = records[:count]
            stop = overfitting_stop(seen, experiment, self._rules) or self._compare(key, experiment, seen)
            if stop is not None:
                self._journal.append(Stopped(key=key, **asdict(stop)))
                self._stops[key] = stop
                return stop
        self._judged[key] = newest
        return None

    def inherit(self, key: str, twin: str) -> None:
        """A trial is the same run as one that was stopped: so it is, in the same epoch for the same reason."""
        if key not in self._stops:
            self._journal.append(Stopped(key=key, **asdict(self._stops[twin])))
            self._stops[key] = self._stops[twin]

    def _compare(self, key: str, experiment: Experiment, records: Sequence[EpochRecord]) -> Stop | None:
        pruning, trial = self._rules.prune, trial_number(key)
        if pruning is None or len(records) not in pruning.comparisons(trial, experiment.epochs):
            return None
        method, curve = experiment.method.name, [record.metrics[ROBUST_ACCURACY] for record in records]
        # Of runs with another seed, that seed may be the better one.
        of_seed = key.removeprefix(trial_key(trial))
        group = f"{method}, bracket {pruning.bracket(trial, experiment.epochs)}{of_seed}"
        place = records[-1].epoch
        arrived = self._compared.setdefault((group, place), {})
        if key not in arrived:
            self._journal.append(Compared(key=key, group=group, epoch=place, value=curve[-1]))
            arrived[key] = curve[-1]
        before = list(arrived)[: list(arrived).index(key)]
        return pruning_stop(pruning, method, curve, [arrived[other] for other in before])


class StoppingScheduler(DriverOnly, FIFOScheduler):
    """Passes every epoch that Tune hears of on to the rules, and their answer back."""

    def __init__(self, decisions: StopDecisions) -> None:
        super().__init__()
        self._decisions = decisions
        self._followers: dict[str, RecordsFollower] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """After every epoch but the last one."""
        if "epoch" not in result:
            return str(self.CONTINUE)  # its worker group is not there yet
        config = trial.config
        follower = self._followers.setdefault(config["run_dir"], RecordsFollower(Path(config["run_dir"])))
        records = [record for record in follower.read() if record.epoch <= result["epoch"]]
        stop = self._decisions.decide(config["key"], parse(config["experiment"]), records)
        return str(self.CONTINUE if stop is None else self.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its records are not needed any more; those of all trials would fill the driver's memory."""
        self._followers.pop(trial.config["run_dir"], None)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Likewise, until it goes on."""
        self._followers.pop(trial.config["run_dir"], None)
