"""What `slurm.sh` asks of Slurm and Ray, with stand-ins for both that write down how they were called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "slurm.sh"
STANDINS = {
    "srun": 'echo "$SRUN_CPUS_PER_TASK $*" >> calls; exec sleep 60',
    "scontrol": """case "$*" in
"show hostnames n[1-2]") printf "n1\\nn2\\n" ;;
"--oneliner show node n2") echo "NodeName=n2 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=n2 Version=22.05" ;;
esac""",
    "ray": "",
    "orchestrator": 'echo "orchestrator $RAY_ADDRESS $*" >> calls; exit 7',
    "python": f'exec {sys.executable} "$@"',
}
RAY = "def init(*_, **__): pass\ndef nodes(): return 2 * [{'Alive': True}]\n"


JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n1"}


def submitted(folder: Path, programs: Mapping[str, str] = STANDINS, **job: str) -> subprocess.Popen[bytes]:
    """A job that has begun."""
    (folder / "bin").mkdir()
    for name, body in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "ray.py").write_text(RAY)
    variables = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(folder), **job}
    return subprocess.Popen(
        ["bash", SCRIPT, "sweep", "quickstart"], cwd=folder, env=variables,
        # Whoever started these tests in the background of a shell has them ignore SIGINT; Slurm's jobs do not.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.mark.parametrize("cpus", [None, "16"])
def test_ray_gets_all_cores_of_a_task_on_every_node(cpus: str | None, tmp_path: Path) -> None:
    job = submitted(tmp_path, **JOB, **({} if cpus is None else {"SLURM_CPUS_PER_TASK": cpus}))
    assert job.wait(60) == 7
    calls = sorted((tmp_path / "calls").read_text().splitlines())
    cores, address = cpus or "1", "127.0.0.1:20012"
    assert calls == [
        f"{cores} --overlap --nodes=1 --ntasks=1 --exclude=n1 ray start --block --num-cpus={cores} --address={address}",
        f"{cores} --overlap --nodes=1 --ntasks=1 --nodelist=n1 ray start --block --num-cpus={cores} --head "
        "--node-ip-address=127.0.0.1 --port=20012",
        f"orchestrator {address} sweep quickstart",
    ]
    assert not list(tmp_path.glob(".ray-*"))


# Python's own handler is there only where the signal was not ignored when it began, as for `lens`.
PATIENT = """
import signal, sys, time
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
open("ready", "w").close()
try:
    time.sleep(30)
except KeyboardInterrupt:
    time.sleep(0.5)
    sys.exit(CODE)
"""


@pytest.mark.parametrize("code", [0, 130])
def test_the_signal_before_the_limit_reaches_any_verb_and_its_exit_code_is_the_jobs(code: int, tmp_path: Path) -> None:
    (tmp_path / "verb.py").write_text(PATIENT.replace("CODE", str(code)))
    job = submitted(tmp_path, {**STANDINS, "orchestrator": f"exec {sys.executable} verb.py"}, **JOB)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    assert job.wait(60) == code
