"""A private Ray that does not come up in time, what fits on which nodes, and what a worker computes on."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import pytest
import torch

from orchestrator.cluster import connection
from orchestrator.cluster.connection import Capacity, NodeCapacity
from orchestrator.cluster.scratch import own_folder
from orchestrator.host.devices import reserved_device
from search_spaces.study import Resources
from tests.integration.conftest import environment
from trainers.problems import InvalidInput


@pytest.fixture
def slow_ray(monkeypatch):
    """`slow_ray(n)`: Ray's first n starts time out, with Ray's own words. Returns the folders that they were given."""
    import ray

    folders: list[Path] = []

    def install(failures, words="The current node timed out during startup. This could happen because"):
        def init(**options):
            # The plan counts by this too: Ray's own count knows nothing of affinity.
            assert options["num_cpus"] == connection.local_capacity().cpus
            folders.append(Path(options["_temp_dir"]))
            folders[-1].mkdir()  # Ray makes it; there is nothing yet
            if len(folders) <= failures:
                raise Exception(words)

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 8.0}}]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        return folders

    return install


def test_a_ray_that_is_late_is_started_again_and_leaves_nothing(slow_ray):
    folders = slow_ray(2)
    with connection.connect(None, trial_slots=1) as capacity:
        assert (capacity.cpus, len(folders)) == (2, 3)
        assert folders[-1].exists()
    assert not folders[-1].exists()


def test_a_ray_that_never_comes_up_is_a_matter_of_the_machine(slow_ray):
    folders = slow_ray(99)
    with pytest.raises(ConnectionError, match=rf"3 times: this machine is too busy .* on {os.cpu_count()} CPUs"):
        connection.connect(None, trial_slots=1).__enter__()
    assert not any(folder.exists() for folder in folders)


def test_other_errors_are_not_tried_again(slow_ray):
    folders = slow_ray(99, words="something else")
    with pytest.raises(Exception, match="something else"):
        connection.connect(None, trial_slots=1).__enter__()
    assert len(folders) == 1


def test_no_garbage_is_left_that_could_speak_to_a_ray_that_shuts_down(slow_ray, monkeypatch):
    """Ray's handles do when they go, whichever thread collects them; its process then exits with code 1."""
    import ray

    class Handle:
        def __init__(self):
            self.cycle = self

    alive = []
    slow_ray(0)
    with connection.connect(None, trial_slots=1):
        handle = weakref.ref(Handle())
        monkeypatch.setattr(ray, "shutdown", lambda: alive.append(handle() is not None))
        gc.disable()
    gc.enable()
    assert alive == [False]


@pytest.mark.ray
def test_a_private_ray_is_its_users_alone_however_long_the_temporary_folder(tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    script = (
        "import os, stat; from pathlib import Path; from orchestrator.cluster import connection\n"
        "with connection.connect(None, trial_slots=1):\n"
        "    import ray\n"
        "    session = Path(ray._private.worker._global_node.get_session_dir_path())\n"
        "    scratch = session.parents[1]\n"
        "    assert max(len(str(path)) for path in (session / 'sockets').iterdir()) <= 107\n"
        "    print(scratch, oct(stat.S_IMODE(scratch.stat().st_mode)))\n"
        "assert not session.parents[0].exists()\n"
    )
    variables = environment(TMPDIR=str(long), PYTHONPATH=str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, mode = done.stdout.split()
    assert (Path(folder).parent, mode) == (Path("/tmp"), "0o700")
    assert not Path(folder).exists()


def test_the_temporary_folder_is_used_where_it_is_short_enough(tmp_path, monkeypatch):
    longest = 107 - len("/orc-12345678/r/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")
    for length, own in ((longest, True), (longest + 1, False)):
        folder = "/tmp/" + "x" * (length - 5)
        os.makedirs(folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        scratch = own_folder.__wrapped__()
        assert (str(scratch.parent) == folder) == own
        shutil.rmtree(scratch)
        os.rmdir(folder)


@pytest.fixture
def short_folder():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_what_a_killed_process_left_the_next_removes_and_of_a_living_one_nothing(short_folder):
    script = (
        "import sys; from orchestrator.cluster import scratch\n"
        "print(scratch.own_folder(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    variables = environment(TMPDIR=str(short_folder), PYTHONPATH=str(Path(__file__).parents[2]))

    def start() -> tuple[subprocess.Popen[str], Path]:
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", script], env=variables, stdin=pipe, stdout=pipe, text=True)
        return process, Path(process.stdout.readline().strip())

    killed, left_over = start()
    living, held = start()
    assert left_over.exists()
    assert held.exists()
    killed.kill()
    killed.wait()
    unnamed = short_folder / "orc-being-made"
    unnamed.mkdir()
    last, folder = start()
    assert sorted(short_folder.iterdir()) == sorted([held, folder, unnamed])
    for process in (living, last):
        process.communicate("")
        assert process.returncode == 0
    assert list(short_folder.iterdir()) == [unnamed]


# What fits


@pytest.mark.parametrize(
    ("nodes", "resources", "count", "limit"),
    [
        ([(2, 0)], {}, 2, "2 CPUs"),
        ([(8, 2)], {"gpus_per_worker": 1}, 2, "2 GPUs"),
        ([(8, 2)], {"gpus_per_worker": 0.5}, 4, "2 GPUs"),
        ([(2, 2)], {"gpus_per_worker": 0.5}, 2, "2 CPUs"),
        # A worker is on one GPU: the fifths that are left of two do not make a place.
        ([(8, 2)], {"gpus_per_worker": 0.4}, 4, "2 GPUs"),
        ([(8, 1)], {"gpus_per_worker": 0.1}, 8, "8 CPUs"),
        ([(9, 3)], {"gpus_per_worker": 2}, 1, "3 GPUs"),
        # Workers of one trial may be on several nodes, the CPUs of one worker may not.
        ([(5, 0), (3, 0)], {"cpus_per_worker": 4}, 1, "8 CPUs"),
        ([(5, 0), (3, 0)], {"cpus_per_worker": 2, "workers": 3}, 1, "8 CPUs"),
        # A node without GPUs is no place for a worker that needs one.
        ([(8, 1), (8, 0)], {"gpus_per_worker": 1, "workers": 1}, 1, "1 GPUs"),
        ([(8, 1), (8, 3)], {"gpus_per_worker": 1, "workers": 2}, 2, "4 GPUs"),
        ([(8, 0)], {"concurrent_trials": 3}, 3, "resources.concurrent_trials"),
    ],
)
def test_as_many_trials_run_at_once_as_have_a_place_on_some_node(nodes, resources, count, limit):
    capacity = Capacity(tuple(NodeCapacity(cpus, gpus) for cpus, gpus in nodes), private=False)
    assert capacity.concurrent_trials(Resources(**resources)) == (count, limit)


def test_what_fits_on_no_node_is_refused_and_not_waited_for():
    capacity = Capacity((NodeCapacity(2, 0), NodeCapacity(2, 0)), private=False)
    with pytest.raises(InvalidInput, match=r"confirm.workers: 1 workers of 3 CPUs .* 4 CPUs and 0 GPUs on 2 nodes"):
        capacity.require(Resources(cpus_per_worker=3), "confirm")


def test_a_worker_computes_on_what_was_reserved_for_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert reserved_device(0) == torch.device("cpu")
    assert reserved_device(0.5) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reserved_device(0) == torch.device("cpu")
    with pytest.raises(InvalidInput, match=r"gpus_per_worker: 1: Ray reserved a GPU on .* can use none there"):
        reserved_device(1)
