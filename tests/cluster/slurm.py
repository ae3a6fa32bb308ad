"""A real Slurm: a controller and two nodes in network namespaces, whose daemons end with the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.cluster.network import Host, Switch
from tests.faults.processes import descendants, kill, wait_until
from tests.integration.conftest import unmeasured

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
# Nodes are told apart by the name that their daemon is started with: all are this machine, and one job has two of them.
_CONFIGURATION = """
ClusterName=orc
SlurmctldHost={machine}({first})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdLogFile={folder}/%n.log
SlurmctldLogFile={folder}/controller.log
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/controller.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=2
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def why_not() -> str | None:
    """What keeps this machine from having a Slurm, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"Slurm is not installed ({', '.join(missing)}); Debian: slurmctld, slurmd, munge" if missing else None


class Slurm:
    """Two nodes of one CPU each. `folder` is what all nodes see; its path is short, for it holds a socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts = [Host(1), Host(2)]
        self._switch = Switch(self._hosts)
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: list[subprocess.Popen[bytes]] = []
        # The environment of whoever submits reaches the nodes: this Python's programs, and this code.
        self._variables = unmeasured(
            SLURM_CONF=str(folder / "slurm.conf"), OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parents[2]),
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        )  # fmt: skip

    def __enter__(self) -> Slurm:
        try:
            self._switch.connect()
            self._configure()
            first, second = self._hosts
            self._start(
                first, "munged", "--foreground", "--force", f"--socket={self._folder}/munge.socket",
                f"--key-file={self._folder}/munge.key", f"--pid-file={self._folder}/munge.pid",
                f"--log-file={self._folder}/munge.log", f"--seed-file={self._folder}/munge.seed",
            )  # fmt: skip
            wait_until((self._folder / "munge.socket").exists, "munge")
            self._start(first, "slurmctld", "-D")
            for number, host in enumerate((first, second), 1):
                self._nodes.append(self._start(host, "slurmd", "-D", "-N", f"n{number}"))
            idle = ["sinfo", "--noheader", "--format=%D %t"]
            wait_until(lambda: self.run(*idle).stdout == "2 idle\n", "two idle nodes", unless=self._ended, every=0.5)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for daemon in reversed(self._daemons):
            below = descendants(daemon.pid)
            daemon.kill()
            daemon.wait()
            for pid in below:
                with suppress(ProcessLookupError):  # it has ended by itself
                    kill(pid)
        self._switch.remove()

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's on the first node."""
        return subprocess.run(
            self._hosts[0].command(*words), cwd=cwd, env=self._variables, capture_output=True, text=True, timeout=60
        )

    def submit(self, *words: str, cwd: Path) -> str:
        """The number of a new job; its output is in `slurm-NUMBER.out`."""
        done = self.run("sbatch", "--parsable", *words, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> tuple[str, str]:
        """Where a job is, and its exit code and signal: for example ("RUNNING", "0:0")."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        return fields["JobState"], fields["ExitCode"]

    def processes(self) -> list[str]:
        """Command lines of everything that the nodes have started for jobs."""
        return [line for node in self._nodes for line in descendants(node.pid).values()]

    def _ended(self) -> str | None:
        """What a daemon that has ended wrote."""
        ended = [daemon for daemon in self._daemons if daemon.poll() is not None]
        return "".join(file.read_text() for file in self._folder.glob("*.out")) if ended else None

    def _configure(self) -> None:
        for name in ("state", "spool-n1", "spool-n2"):
            (self._folder / name).mkdir()
        key = self._folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        # It would look for control groups, which this configuration has no use for and a namespace hides.
        (self._folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        machine = socket.gethostname()
        nodes = [
            f"NodeName=n{number} NodeHostname={machine} NodeAddr={host.address} Port={17000 + number} CPUs=1"
            for number, host in enumerate(self._hosts, 1)
        ]
        (self._folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                machine=machine, first=self._hosts[0].address, folder=self._folder, nodes="\n".join(nodes)
            )
        )

    def _start(self, host: Host, *words: str) -> subprocess.Popen[bytes]:
        with open(self._folder / f"{words[0]}-{host.index}.out", "wb") as log:
            daemon = subprocess.Popen(
                host.command(*words), env=self._variables, stdout=log, stderr=log, start_new_session=True
            )
        self._daemons.append(daemon)
        return daemon
