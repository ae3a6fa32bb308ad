"""What the worker groups of a dead driver still reserve on a cluster that outlives it is given back."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from orchestrator import cluster
from orchestrator.slots import GROUP_FILE, release_left_over

pytestmark = pytest.mark.ray


def test_the_reservations_noted_in_a_study_folder_are_removed_and_others_stay(tmp_path: Path) -> None:
    with cluster.connect(None, trial_slots=1):
        noted, foreign = (placement_group([{"CPU": 0.5}], lifetime="detached") for _ in range(2))
        for group in (noted, foreign):
            ray.get(group.ready())
        for folder in ("trials/0000", "confirm/0000-seed1"):  # one group served both runs
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / GROUP_FILE).write_text(noted.id.hex())
        (tmp_path / "trials" / "0001").mkdir()
        release_left_over(tmp_path)
        assert not list(tmp_path.rglob(GROUP_FILE))
        states = {key: entry["state"] for key, entry in placement_group_table().items()}
        assert states == {noted.id.hex(): "REMOVED", foreign.id.hex(): "CREATED"}
        release_left_over(tmp_path)
