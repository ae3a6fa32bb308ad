"""What the worker groups of a dead driver still reserve on a cluster that outlives it is given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from orchestrator.cluster import connection
from orchestrator.records.events import Joined
from orchestrator.records.journal import Journal
from orchestrator.slots.reservations import release_left_over

pytestmark = pytest.mark.ray

DRIVER = """
import os, sys, ray
from ray.util.placement_group import placement_group
ray.init(address=sys.argv[1], logging_level="error")
group = placement_group([{"CPU": 0.5}], lifetime="detached")
ray.get(group.ready())
print(ray.get_runtime_context().get_job_id(), group.id.hex(), flush=True)
os.kill(os.getpid(), 9)
"""


def killed_drivers(count: int) -> list[list[str]]:
    """Drivers on this cluster that reserve and die: the job of each, and its placement group."""
    words = [sys.executable, "-c", DRIVER, ray.get_runtime_context().gcs_address]
    drivers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return [driver.communicate()[0].split() for driver in drivers]


def test_what_earlier_drivers_of_the_study_reserved_is_removed_and_others_stay(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with connection.connect(None, trial_slots=1):
        own = placement_group([{"CPU": 0.5}], lifetime="detached")
        ray.get(own.ready())
        release_left_over(journal)
        (joined,) = journal.events()
        assert joined.job == ray.get_runtime_context().get_job_id()
        (ours, left), (_, foreign) = killed_drivers(2)
        journal.append(Joined(cluster=joined.cluster, job=ours))
        journal.append(Joined(cluster="another cluster", job=foreign[-8:]))
        release_left_over(journal)
        states = {group: entry["state"] for group, entry in placement_group_table().items()}
        assert states == {own.id.hex(): "CREATED", left: "REMOVED", foreign: "CREATED"}
