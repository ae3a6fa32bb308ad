"""Fixtures of every test: runs of a second on scikit-learn's digits at 8x8, and one net that was trained a little."""

from __future__ import annotations

import coverage
import pytest
import torch
from torch.nn import functional as F

from orchestrator.cluster import connection
from trainers.config import apply_values, parse
from trainers.data.images import load_splits
from trainers.models.build import build_model
from trainers.ranks import Ranks

# Ray reads its environment when it is imported, and test modules import it.
connection.prepare(private=True)

TINY = {
    "data": {"size": 8, "train_samples": 256, "holdout": 100},
    "model": {"name": "small", "width": 4},
    "optimizer": {"batch_size": 64, "learning_rate": 0.05},
    "epochs": 3,
    "evaluation": {"probe_samples": 64},
}


def pytest_sessionfinish():
    """Keep what was covered: a process of xdist that takes long to end, as with Ray in it, is killed before it does."""
    measured = coverage.Coverage.current()
    if measured is not None:
        measured.save()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def experiment():
    """`experiment({"method.name": "trades"})`: a tiny run with the value at each dotted path set."""
    return lambda values=(): parse(apply_values(TINY, dict(values)))


@pytest.fixture(scope="session")
def splits(experiment):
    return load_splits(experiment().data)


@pytest.fixture
def alone():
    return Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="session")
def digits(experiment):
    """512 training digits as (images in [0,1], labels)."""
    train = load_splits(experiment({"data.train_samples": 512}).data).train
    return train.floats(), train.labels


@pytest.fixture(scope="session")
def natural_net(experiment, digits):
    """A batch-norm net of width 8 after naturally training on the digits: accurate, not robust. In eval mode."""
    model = build_model(experiment({"model.width": 8})).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    order = torch.Generator().manual_seed(0)
    for _ in range(8):
        for batch in torch.randperm(len(digits[1]), generator=order).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(digits[0][batch]), digits[1][batch]).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()
