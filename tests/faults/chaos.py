"""Faults at random times, as many as asked for: `python -m tests.faults.chaos FAULTS [SEED]`.

Study after study, of one and of two workers in turn, is shaken until it ends, and then compared with an undisturbed
one of the same seed. Prints every fault as it is injected, and the table at the end. The seed gives the same faults
again, though not at the same instants.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from mlflow import MlflowClient

from tests.faults.conftest import DIVERGING, shaken_study
from tests.faults.full_disk import filled, small_disk
from tests.faults.laboratory import TRAIN_WORKER, TRIAL_ACTOR, Injection, Laboratory, table
from tests.faults.processes import kill
from tests.faults.servers import TrackingServer
from tests.faults.undisturbed import (
    assert_same_optuna_trials,
    assert_same_run,
    assert_tracked_once,
    train_here,
    train_on_two_ranks,
    undisturbed,
)
from tests.integration.conftest import run
from trainers.records import RECORDS_FILE

_LONGEST_WAIT_SECONDS = 4.0
Fault = Callable[["Shaking"], bool]  # whether there was anything to break


@dataclass
class Shaking:
    """One study while it is shaken."""

    laboratory: Laboratory
    server: TrackingServer
    draw: random.Random
    own_disk: bool

    @property
    def newest_trial(self) -> int:
        """The trial that runs, or will."""
        return max((run.trial for run in self.laboratory.journal.runs()), default=0)


def kill_trial(shaking: Shaking) -> bool:
    """The process that Tune knows."""
    actors = shaking.laboratory.running(TRIAL_ACTOR)
    for actor in actors:
        kill(actor)
    return bool(actors)


def kill_worker(shaking: Shaking) -> bool:
    """One of a group, whichever."""
    workers = shaking.laboratory.running(TRAIN_WORKER)
    if workers:
        kill(shaking.draw.choice(workers))
    return bool(workers)


def corrupt_checkpoint(shaking: Shaking) -> bool:
    """While its owner is stopped, which then dies."""
    laboratory = shaking.laboratory
    actors = laboratory.running(TRIAL_ACTOR)
    for actor in actors:
        os.kill(actor, signal.SIGSTOP)
    if actors and laboratory.checkpoints(shaking.newest_trial):
        laboratory.corrupt_newest_checkpoint(shaking.newest_trial)
    for actor in actors:
        kill(actor)
    return bool(actors)


def kill_driver(shaking: Shaking) -> bool:
    """And tear the files that it and its trial were writing."""
    laboratory = shaking.laboratory
    if laboratory.driver.poll() is not None:
        return False
    laboratory.kill_driver()
    for file in (laboratory.root / "journal.jsonl", laboratory.run_dir(shaking.newest_trial) / RECORDS_FILE):
        if file.exists():
            laboratory.tear(file)
    laboratory.start()
    return True


def fill_disk(shaking: Shaking) -> bool:
    """Until the driver ends."""
    with filled(shaking.laboratory.root.parent):
        shaking.laboratory.end()
    shaking.laboratory.start()
    return True


def restart_tracking(shaking: Shaking) -> bool:
    """The server is away for as long as it takes to start."""
    shaking.server.kill()
    shaking.server.start()
    return True


FAULTS: dict[int, dict[str, Fault]] = {
    1: {
        "trial's process killed": kill_trial,
        "newest checkpoint corrupted, process killed": corrupt_checkpoint,
        "driver killed, records and journal torn, resumed": kill_driver,
        "disk full, freed, resumed": fill_disk,
        "MLflow killed, brought back": restart_tracking,
    },
    2: {
        "Train worker killed": kill_worker,
        "actor of a worker group killed": kill_trial,
        "driver killed, records and journal torn, resumed": kill_driver,
    },
}


def shake(folder: Path, workers: int, faults: int, draw: random.Random) -> list[Injection]:
    """One study with up to so many faults; raises AssertionError if it shows afterwards."""
    server = TrackingServer(folder)
    server.start()
    content = shaken_study("chaos", 10, workers, seed=draw.randrange(1000), start=[DIVERGING])
    content["tracking"] = {"uri": server.uri}
    with small_disk(folder / "runs", 64) as own_disk, Laboratory(folder, content) as laboratory:
        try:
            server.wait()
            shaking = Shaking(laboratory, server, draw, own_disk)
            choice = [name for name in FAULTS[workers] if own_disk or name != "disk full, freed, resumed"]
            laboratory.start()
            while len(laboratory.injections) < faults:
                laboratory.wait_for_a_new_epoch(or_the_end=True)
                time.sleep(draw.uniform(0, _LONGEST_WAIT_SECONDS))
                if laboratory.driver.poll() is not None:
                    break
                name = draw.choice(choice)
                with laboratory.fault(name):
                    hit = FAULTS[workers][name](shaking)
                    laboratory.wait_for_a_new_epoch(or_the_end=True)
                if hit:
                    print(f"  trial {shaking.newest_trial}: {name}", flush=True)
                else:
                    laboratory.injections.pop()
            code, said = laboratory.end()
            assert code == 1, said
            server.wait()
            if "MLflow is behind" in said:
                assert run("sync", "runs/chaos", cwd=folder).returncode == 0
            train = train_here if workers == 1 else train_on_two_ranks
            reference = undisturbed(laboratory.study, folder / "reference", train)
            assert_same_optuna_trials(laboratory.study, laboratory.journal, reference)
            for ours, theirs in zip(laboratory.journal.runs(), reference.runs(), strict=True):
                assert_same_run(ours, theirs)
            assert_tracked_once(MlflowClient(tracking_uri=server.uri), laboratory.journal)
            assert not any(injection.epochs_doubled for injection in laboratory.injections)
        finally:
            laboratory.clean_up()
            server.kill()
    return laboratory.injections


def main(faults: int, seed: int) -> None:
    """Shake studies until so many faults were injected."""
    torch.set_num_threads(1)
    draw, done, studies = random.Random(seed), [], 0
    print(f"{faults} faults, seed {seed}")
    while len(done) < faults:
        workers = 1 + studies % 2
        studies += 1
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            print(f"study {studies}, {workers} worker{'s' * (workers > 1)} a trial", flush=True)
            done += shake(Path(folder), workers, min(faults - len(done), 8), draw)
    print(f"\n{table(done)}\n{studies} studies ended as if nothing had happened")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10_000))
