"""What `slurm.sh` asks of Slurm and Ray, with stand-ins for both that write down how they were called."""

from __future__ import annotations

import os
import subprocess
import sys
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


def called(folder: Path, **job: str) -> tuple[int, list[str]]:
    """The exit code of a job, and the calls that it made."""
    (folder / "bin").mkdir()
    for name, body in STANDINS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "ray.py").write_text(RAY)
    variables = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(folder), **job}
    done = subprocess.run(["bash", SCRIPT, "sweep", "quickstart"], cwd=folder, env=variables, timeout=60)
    return done.returncode, sorted((folder / "calls").read_text().splitlines())


@pytest.mark.parametrize("cpus", [None, "16"])
def test_ray_gets_all_cores_of_a_task_on_every_node(cpus: str | None, tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n1"}
    if cpus is not None:
        job["SLURM_CPUS_PER_TASK"] = cpus
    code, calls = called(tmp_path, **job)
    cores, address = cpus or "1", "127.0.0.1:20012"
    assert code == 7
    assert calls == [
        f"{cores} --overlap --nodes=1 --ntasks=1 --exclude=n1 ray start --block --num-cpus={cores} --address={address}",
        f"{cores} --overlap --nodes=1 --ntasks=1 --nodelist=n1 ray start --block --num-cpus={cores} --head "
        "--node-ip-address=127.0.0.1 --port=20012",
        f"orchestrator {address} sweep quickstart",
    ]
    assert not list(tmp_path.glob(".ray-*"))
