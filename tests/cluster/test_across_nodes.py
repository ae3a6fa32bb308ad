"""Trials whose workers are on two nodes, while the link between them and the nodes fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.laboratory import ClusterLaboratory, check
from tests.cluster.network import DEATH_SECONDS, Network, silence
from tests.faults.conftest import shaken_study
from tests.faults.laboratory import Injection
from tests.faults.undisturbed import meanwhile, train_on_two_ranks

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


def test_trials_across_two_nodes_survive_a_cut_link_and_a_dead_node(
    network: Network, tmp_path: Path, injections: list[Injection]
) -> None:
    content = shaken_study("across", 4, 2, sampler="random", seed=5)
    first, second = network.workers
    with ClusterLaboratory(tmp_path, content, network) as laboratory:
        reference = meanwhile(laboratory.study, tmp_path / "reference", train_on_two_ranks)
        laboratory.start()
        laboratory.wait_for_epoch(0, 1)
        with laboratory.fault("link cut, shorter than the death of a node"), network.cut(second):
            silence(DEATH_SECONDS / 3)
        laboratory.wait_for_a_new_epoch()
        laboratory.wait_for_epoch(1, 1)
        with laboratory.fault("link cut, longer than the death of a node"):
            with network.cut(second):
                silence(2 * DEATH_SECONDS)
            # A node that was declared dead ends when it hears of it, and is started again.
            laboratory.wait_for_a_new_epoch()
        laboratory.wait_for_epoch(2, 1)
        with laboratory.fault("node killed and started again"):
            first.kill_raylet()
            laboratory.wait_for_a_new_epoch()
        laboratory.wait_for_epoch(3, 1)
        laboratory.kill_driver()
        with laboratory.fault("driver killed, resumed on the cluster that it left"):
            laboratory.start()
            laboratory.wait_for_a_new_epoch()
        injections += laboratory.injections
        check(laboratory, reference.result())
