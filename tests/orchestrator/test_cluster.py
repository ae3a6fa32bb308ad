"""A private Ray: what happens when it does not come up in time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator import cluster


@pytest.fixture
def slow_ray(monkeypatch):
    """`slow_ray(n)`: Ray's first n starts time out, with Ray's own words. Returns the folders that they were given."""
    import ray

    folders: list[Path] = []

    def install(failures, words="The current node timed out during startup. This could happen because"):
        def init(**options):
            folders.append(Path(options["_temp_dir"]))
            assert folders[-1].is_dir()
            if len(folders) <= failures:
                raise Exception(words)

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
        return folders

    return install


def test_a_ray_that_is_late_is_started_again_and_leaves_nothing(slow_ray):
    folders = slow_ray(2)
    with cluster.connect(None, trial_slots=1) as capacity:
        assert capacity.cpus == 2
        assert [folder.exists() for folder in folders] == [False, False, True]
    assert not folders[-1].exists()


def test_a_ray_that_never_comes_up_is_a_matter_of_the_machine(slow_ray):
    folders = slow_ray(99)
    with pytest.raises(ConnectionError, match=rf"3 times: this machine is too busy .* on {os.cpu_count()} CPUs"):
        cluster.connect(None, trial_slots=1).__enter__()
    assert not any(folder.exists() for folder in folders)


def test_other_errors_are_not_tried_again(slow_ray):
    folders = slow_ray(99, words="something else")
    with pytest.raises(Exception, match="something else"):
        cluster.connect(None, trial_slots=1).__enter__()
    assert len(folders) == 1
