"""A Ray that somebody else started, on loopback and with a token: joined by `--address`, and sent jobs."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.cluster.ray_node import RayNode, make_token
from tests.faults.processes import wait_until
from tests.integration.conftest import STUDY, command, environment, run
from tests.integration.test_extension import METHOD, install
from trainers.records import read_records

pytestmark = pytest.mark.ray

ROOT = str(Path(__file__).parents[2])
EPOCHS = 24
SENT = {
    **STUDY,
    "name": "sent",
    "experiment": {**STUDY["experiment"], "method": "both", "epochs": EPOCHS},
    "space": {"attack.epsilon": [0.1]},
    "search": {"trials": 1},
    "confirm": {"top": 0},
}


@dataclass
class Cluster:
    """Where it listens, and how to talk to it."""

    node: RayNode
    address: str
    dashboard: str

    def run(self, *words: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
        """Our command line with the cluster's token and address."""
        return run(*words, cwd=cwd, measured=False, **self.variables, **extra)

    @property
    def variables(self) -> dict[str, str]:
        """What the user has exported."""
        held = self.node.environment()
        return {name: held[name] for name in held if name.startswith("RAY_")} | {
            "RAY_API_SERVER_ADDRESS": self.dashboard
        }


def slow_while(file: Path) -> str:
    """The toy method, as long as a certain file is there slower than the verbs that have to find it at work."""
    head = "def ce_both(natural_logits, adversarial_logits, labels, *, beta):\n"
    brake = f"    import pathlib, time\n    time.sleep(2.0 * pathlib.Path({str(file)!r}).exists())\n"
    return METHOD.replace(head, head + brake)


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [str(probe.getsockname()[1]) for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    port, dashboard, agent, client = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="orc-") as folder:
        # 127.0.0.1 would be replaced by the address of this machine.
        words = ["--head", "--node-ip-address", "127.0.0.2", "--port", port, "--num-cpus", "1"]
        words += ["--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
        words += ["--ray-client-server-port", client]
        node = RayNode(Path(folder) / "n", make_token(Path(folder)), words)
        try:
            node.start(PYTHONPATH=ROOT)
            node.wait()
            yield Cluster(node, f"127.0.0.2:{port}", f"http://127.0.0.1:{dashboard}")
        finally:
            node.stop()


@dataclass
class Sent:
    """A job that was stopped, and the one that went on with its study: what was said of them."""

    folder: Path
    site: str
    submitted: str
    left: tuple[int, str]
    stopped: tuple[int, str]
    resumed: tuple[int, str]

    @property
    def run_dir(self) -> Path:
        return self.folder / "shared" / "sent" / "trials" / "0000"


@pytest.fixture(scope="module")
def sent(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """A study of a method that only the sender has: submitted, left, stopped in mid trial, resumed to its end."""
    folder = tmp_path_factory.mktemp("sent")
    brake = folder / "brake"
    brake.touch()
    site = install(folder, slow_while(brake))
    here = {"PYTHONPATH": f"{site}:{ROOT}"}
    (folder / "sent.yaml").write_text(yaml.safe_dump(SENT))
    submitted = cluster.run("submit", "sent.yaml", "--storage", str(folder / "shared"), cwd=folder, **here)
    assert submitted.returncode == 0, submitted.stderr
    seen = folder / "seen.txt"
    with open(seen, "w") as output:
        watching = subprocess.Popen(
            command("job", "logs", "sent-1", "--follow"), cwd=folder, env=environment(**cluster.variables, **here),
            stdout=output, stderr=subprocess.STDOUT,
            # Whoever started these tests in the background of a shell has them ignore Ctrl-C; a user's shell has not.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    run_dir = folder / "shared" / "sent" / "trials" / "0000"
    wait_until(
        lambda: len(read_records(run_dir)) > 1 and seen.read_text() != "", "two epochs, and a watcher of them",
        unless=lambda: None if watching.poll() is None else seen.read_text(),
    )  # fmt: skip
    watching.send_signal(signal.SIGINT)
    watching.wait()
    left = seen.read_text()
    asked = cluster.run("job", "stop", "sent-1", cwd=folder)
    assert asked.stdout.startswith("sent-1 ends after its epoch"), "it outlived its watcher"
    stopped = cluster.run("job", "logs", "sent-1", "--follow", cwd=folder)
    assert 1 < len(read_records(run_dir)) < EPOCHS, "it was stopped in mid trial"
    brake.unlink()
    assert cluster.run("job", "resume", "sent-1", cwd=folder, **here).returncode == 0
    resumed = cluster.run("job", "logs", "sent-2", "--follow", cwd=folder)
    return Sent(
        folder, site, submitted.stdout, (watching.returncode, left),
        (stopped.returncode, stopped.stdout), (resumed.returncode, resumed.stdout),
    )  # fmt: skip


def test_a_submitted_study_outlives_whoever_watches_it(sent: Sent) -> None:
    assert "orchestrator job logs sent-1 --follow" in sent.submitted
    code, said = sent.left
    assert code == 130
    assert said.rstrip().endswith("sent-1 goes on; to stop it: orchestrator job stop sent-1")


def test_stop_lets_the_driver_finish_its_epoch_and_say_so(sent: Sent) -> None:
    code, said = sent.stopped
    assert code == 130
    assert "stopping after the current epoch" in said
    assert said.rstrip().endswith("resume with: orchestrator job resume sent-1")
    assert "SIGTERM" not in said


def test_a_resumed_job_ends_bit_for_bit_as_if_never_stopped(sent: Sent) -> None:
    code, said = sent.resumed
    assert code == 0, said
    trained = run(
        "train", str(sent.run_dir / "experiment.yaml"), "--run-dir", "alone", "--threads", "1",
        cwd=sent.folder, PYTHONPATH=f"{sent.site}:{ROOT}",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    alone = sent.folder / "alone"
    assert [record.epoch for record in read_records(sent.run_dir)] == list(range(EPOCHS))
    for ours, theirs in zip(read_records(sent.run_dir), read_records(alone), strict=True):
        assert ours.metrics["train/loss"] == theirs.metrics["train/loss"]
        assert ours.metrics["val/pgd10_accuracy"] == theirs.metrics["val/pgd10_accuracy"]
    newest = f"checkpoints/epoch_{EPOCHS - 1:04d}/model.safetensors"
    here, there = load_file(sent.run_dir / newest), load_file(alone / newest)
    assert all(torch.equal(here[name], there[name]) for name in there)


def test_what_a_job_writes_lies_beside_its_study_folder(sent: Sent) -> None:
    assert (sent.folder / "shared" / "mlflow.db").is_file()
    assert (sent.folder / "shared" / "sent" / "report.html").is_file()


def test_jobs_are_listed_and_a_wrong_name_names_them(cluster: Cluster, sent: Sent) -> None:
    listed = cluster.run("job", "list", cwd=sent.folder)
    rows = [line.split()[:2] for line in listed.stdout.splitlines()]
    assert rows == [["sent-1", "stopped"], ["sent-2", "succeeded"]]
    looked = cluster.run("job", "status", "sent-2", cwd=sent.folder)
    assert looked.stdout.startswith(f"sent-2: succeeded (exit code 0), {sent.folder}/shared/sent")
    wrong = cluster.run("job", "stop", "sent-3", cwd=sent.folder)
    assert wrong.returncode == 2
    assert "Allowed: sent-1, sent-2." in wrong.stderr


def test_without_the_token_nothing_is_told(cluster: Cluster, tmp_path: Path) -> None:
    for words, address in ((["job", "list"], cluster.dashboard), (["sweep", "quickstart"], cluster.address)):
        result = run(*words, "--address", address, cwd=tmp_path, measured=False, RAY_AUTH_MODE="disabled")
        assert result.returncode == 3, words
        assert "RAY_AUTH_TOKEN_PATH" in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "quickstart").exists()


def test_a_sweep_and_the_doctor_join_by_address(cluster: Cluster, tmp_path: Path) -> None:
    raw = {**SENT, "name": "joined", "experiment": {**STUDY["experiment"], "epochs": 1}}
    (tmp_path / "joined.yaml").write_text(yaml.safe_dump(raw))
    swept = cluster.run("sweep", "joined.yaml", "--address", cluster.address, cwd=tmp_path, PYTHONPATH=ROOT)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert len(read_records(tmp_path / "runs" / "joined" / "trials" / "0000")) == 1
    looked = cluster.run("doctor", "joined.yaml", "--address", cluster.address, cwd=tmp_path, PYTHONPATH=ROOT)
    assert looked.returncode == 0, looked.stdout
    for name in ("Ray", "versions", "clocks", "shared", "network", "data"):
        assert f"ok     {name}" in looked.stdout
