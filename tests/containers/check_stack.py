"""A study on the real stack while one of its workers crashes: `make test-containers`.

Not collected by `make test`: it needs a container engine, the image and some minutes.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from orchestrator.exit_codes import OK
from orchestrator.records.journal import Journal
from orchestrator.records.runs import Run
from orchestrator.records.study_folder import read_identity
from orchestrator.tracking.server import RUN_TAG
from tests.containers.stack import Stack
from tests.faults.undisturbed import assert_tracked_once
from tests.recorded import timeless
from trainers.diagnostics.overfitting import ROBUST_ACCURACY
from trainers.records import EpochRecord, read_records

pytestmark = pytest.mark.timeout(1200)

TRIALS, EPOCHS = 2, 12
STUDY = {
    "name": "containers",
    "experiment": {
        "data": {"name": "digits", "size": 16, "holdout": 80, "train_samples": 800},
        "model": {"name": "small", "width": 16},
        "method": "fgsm",
        "attack": {"epsilon": 0.1},
        "optimizer": {"learning_rate": 0.1, "batch_size": 32},
        "epochs": EPOCHS,
        "evaluation": {"epsilon": 0.1, "probe_samples": 40},
    },
    "space": {"attack.epsilon": {"low": 0.05, "high": 0.2}},
    "search": {"sampler": "random", "trials": TRIALS, "seed": 3},
    "confirm": {"top": 1, "seeds": 1, "workers": 2, "attack": "pgd20", "samples": 40, "shard": 20, "batch_size": 20},
}
RUNS = "/studies/runs/containers"
FOLDERS = [f"{RUNS}/trials/{trial:04d}" for trial in range(TRIALS)]


@dataclass
class Story:
    """What is left when the study is over."""

    exit_code: int
    said: str
    journal: Journal
    before: list[list[EpochRecord]]  # what each trial had recorded after the crash
    folder: Path

    @property
    def cut_off(self) -> Run:
        """The trial that was given to a worker twice."""
        (run,) = [run for run in self.journal.runs() if self.said.count(f"{run.key}  started") == 2]
        return run


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("secrets"))
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="module")
def client(stack: Stack) -> MlflowClient:
    return MlflowClient(f"http://127.0.0.1:{stack.mlflow}")


@pytest.fixture(scope="module")
def story(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    study, log = folder / "study.yaml", folder / "log"
    study.write_text(yaml.safe_dump(STUDY))
    words = ["run", "--rm", "--no-TTY", "--volume", f"{study}:/studies/study.yaml:ro", "study", "sweep", "study.yaml"]
    driver = stack.start(*words, log=log)

    def recorded() -> list[list[EpochRecord]]:
        script = f"for trial in {' '.join(FOLDERS)}; do cat $trial/records.jsonl 2>/dev/null; echo ---; done"
        parts = stack.inside("head", script).split("---\n")[:TRIALS]
        return [[EpochRecord.from_json(line) for line in part.splitlines() if line.endswith("}}")] for part in parts]

    # The condition is looked at where the processes are: a look from outside takes as long as some epochs.
    begun = " && ".join(f"[ $(cat {folder}/records.jsonl 2>/dev/null | wc -l) -ge 2 ]" for folder in FOLDERS)
    stack.crash_when(stack.containers("worker")[0], begun)
    before = recorded()
    code = driver.wait()
    stack("cp", f"head:{RUNS}", str(folder))
    return Story(code, log.read_text(), Journal(folder / "containers"), before, folder)


def test_a_crashed_worker_comes_back_and_the_study_ends(story: Story) -> None:
    assert story.exit_code == OK, story.said
    runs = story.journal.runs()
    assert [run.kind for run in runs] == ["trial"] * TRIALS + ["confirmation"]
    assert [(run.state, [record.epoch for record in run.records]) for run in runs] == [
        ("complete", list(range(EPOCHS)))
    ] * len(runs)


def test_no_epoch_that_was_recorded_is_computed_again(story: Story) -> None:
    assert story.cut_off.state == "complete"
    for run, before in zip(story.journal.runs(), story.before, strict=False):
        assert list(run.records[: len(before)]) == before


def test_it_ends_as_an_undisturbed_run(stack: Stack, story: Story) -> None:
    cut = story.cut_off
    experiment = f"{FOLDERS[cut.trial]}/experiment.yaml"
    stack.inside("head", f"orchestrator train --run-dir /tmp/alone --threads 1 {experiment}")
    stack("cp", "head:/tmp/alone", str(story.folder))
    alone = read_records(story.folder / "alone")
    assert timeless(cut.records) == timeless(alone)


def test_mlflow_has_every_epoch_once_over_http(story: Story, client: MlflowClient) -> None:
    assert_tracked_once(client, story.journal)


def test_the_database_has_every_epoch_once(stack: Stack, story: Story) -> None:
    doubled = "select run_uuid, key, step from metrics group by 1, 2, 3 having count(*) > 1"
    assert stack.query(doubled) == []
    found = stack.query(
        f"select t.value, count(*) from metrics m join tags t on t.run_uuid = m.run_uuid and t.key = '{RUN_TAG}' "
        f"where m.key = '{ROBUST_ACCURACY}' group by 1 order by 1"
    )
    identity = read_identity(story.journal.folder)
    expected = [[f"{identity}/{run.key}", str(len(run.records))] for run in story.journal.runs()]
    assert found == sorted(expected)


def test_artifacts_go_through_the_server(stack: Stack, story: Story, client: MlflowClient, tmp_path: Path) -> None:
    run = story.journal.runs()[0]
    experiment = client.get_experiment_by_name("adversarial-training")
    which = f"tags.`{RUN_TAG}` = '{read_identity(story.journal.folder)}/{run.key}'"
    (tracked,) = client.search_runs([experiment.experiment_id], which)
    assert tracked.info.artifact_uri.startswith("mlflow-artifacts:")

    def content(artifact: str) -> bytes:
        return Path(client.download_artifacts(tracked.info.run_id, artifact, str(tmp_path))).read_bytes()

    newest = max((run.folder / "checkpoints").glob("epoch_*")) / "model.safetensors"
    assert content("checkpoints/last/model.safetensors") == newest.read_bytes()
    labels = stack.inspect(stack.containers("head")[0])["Config"]["Labels"]
    assert (json.loads(content("environment.json"))["git_commit"] or "") == labels["org.opencontainers.image.revision"]


def test_two_pages_are_published_and_only_on_loopback(stack: Stack) -> None:
    ports = {}
    for service in ("head", "worker", "mlflow", "postgres"):
        for container in stack.containers(service):
            bound = stack.inspect(container)["NetworkSettings"]["Ports"]
            ports |= {port: [b["HostIp"] for b in bindings] for port, bindings in bound.items() if bindings}
    assert ports == {"8265/tcp": ["127.0.0.1"], "5000/tcp": ["127.0.0.1"]}


def test_ray_answers_those_who_have_the_token(stack: Stack) -> None:
    nodes = f"http://127.0.0.1:{stack.dashboard}/nodes?view=summary"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(nodes, timeout=20)
    bearer = {"Authorization": f"Bearer {stack.secrets['ray_token']}"}
    with urllib.request.urlopen(urllib.request.Request(nodes, headers=bearer), timeout=20) as answer:
        assert answer.status == 200


def test_secrets_are_files_that_only_who_needs_them_sees(stack: Stack) -> None:
    seen = {service: stack.inside(service, "ls /run/secrets").split() for service in ("head", "worker", "mlflow")}
    assert seen == {"head": ["ray_token"], "worker": ["ray_token"], "mlflow": ["database_password"]}
    for service in ("head", "worker", "mlflow", "postgres"):
        told = str(stack.inspect(stack.containers(service)[0])["Config"])
        assert not any(content in told for content in stack.secrets.values())


def test_containers_run_as_a_user_who_can_change_nothing_of_the_program(stack: Stack) -> None:
    for service in ("head", "worker", "mlflow"):
        assert stack.inside(service, "id -u") == "10001\n"
        assert stack.inside(service, "touch /opt/venv/mine 2>/dev/null || echo refused") == "refused\n"


def test_photographs_can_be_read_in_the_image(stack: Stack) -> None:
    script = "from trainers.data.torchvision_datasets import torchvision_datasets as t; print(t().CIFAR10.base_folder)"
    assert stack.inside("worker", f'python -c "{script}"') == "cifar-10-batches-py\n"
