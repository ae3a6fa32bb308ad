"""What worker groups reserve on a cluster, given back when they die: Ray Train keeps it for groups that are gone.

A placement group outlives the trial actor whose workers it holds, and on a cluster that we joined even the driver.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import PlacementGroupID, tune
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from orchestrator.cluster.connection import HEAD_NODE
from orchestrator.records.events import Joined
from orchestrator.records.journal import Journal

GROUP_FILE = "placement_group"


def note_placement_group(run_dir: Path) -> None:
    """Write down which placement group this worker group holds: whoever cleans up after a crash needs its id."""
    group = ray.util.get_current_placement_group()
    if group is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / GROUP_FILE).write_text(group.id.hex())


class ReleasePlacementGroups(tune.Callback):
    """Removes what a killed trial actor has left, or the next slot would wait for it for ever."""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune is about to start the trial again in a new actor."""
        _release_noted(Path(trial.config["run_dir"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has failed for good; its actor is gone."""
        _release_noted(Path(trial.config["run_dir"]))


def release_left_over(journal: Journal) -> None:
    """Remove what the earlier drivers of this study have left on the cluster, and note that this one has joined it.

    They are dead: the caller holds the study's lock.
    """
    (head,) = (node["NodeID"] for node in ray.nodes() if HEAD_NODE in node["Resources"])
    job = ray.get_runtime_context().get_job_id()
    joined = [event for event in journal.events() if isinstance(event, Joined)]
    # Another cluster counts its jobs from the start again; its head has another id.
    dead = {event.job for event in joined if event.cluster == head} - {job}
    journal.append(Joined(cluster=head, job=job))
    for group, entry in placement_group_table().items():
        # The id of a placement group ends with that of the job that made it.
        if entry["state"] != "REMOVED" and group[-len(job) :] in dead:
            _release(group)


def _release_noted(run_dir: Path) -> None:
    note = run_dir / GROUP_FILE
    if note.exists():
        _release(note.read_text())
        note.unlink()


def _release(group: str) -> None:
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
