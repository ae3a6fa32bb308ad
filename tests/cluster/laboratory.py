"""A study on a cluster of several nodes, in the hands of someone who breaks links and nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from orchestrator.records.journal import Journal
from tests.cluster.network import GCS_PORT, HEAD_ADDRESS, Network
from tests.faults.laboratory import Laboratory
from tests.faults.undisturbed import assert_same_run, assert_tracked_once


class ClusterLaboratory(Laboratory):
    """A study whose driver runs on the head of a cluster that outlives it."""

    def __init__(self, folder: Path, content: dict[str, Any], network: Network) -> None:
        super().__init__(folder, content)
        self._head = network.head

    def command(self, *words: str) -> list[str]:
        """On the head node, which is where a driver of a study belongs."""
        return self._head.host.command(*super().command(*words, "--address", f"{HEAD_ADDRESS}:{GCS_PORT}"))

    def environment(self) -> dict[str, str]:
        """With the cluster's token."""
        return self._head.environment()


def check(laboratory: ClusterLaboratory, reference: Journal) -> None:
    """The study ends as the undisturbed one did, and MLflow knows every epoch once."""
    code, said = laboratory.end()
    assert code == any(run.state == "failed" for run in reference.runs()), said
    for ours, theirs in zip(laboratory.journal.runs(), reference.runs(), strict=True):
        assert ours.values == theirs.values
        assert_same_run(ours, theirs)
    client = MlflowClient(tracking_uri=f"sqlite:///{laboratory.folder}/runs/mlflow.db")
    assert_tracked_once(client, laboratory.journal)
    assert not any(injection.epochs_doubled for injection in laboratory.injections)
