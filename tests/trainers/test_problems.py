"""What is wrong with an input arrives as it was said, also from another process."""

from __future__ import annotations

import pickle

import pytest

from trainers.checkpoint import CorruptCheckpoint
from trainers.problems import InvalidInput, Problem


@pytest.mark.parametrize("kind", [InvalidInput, CorruptCheckpoint])
def test_an_error_says_the_same_after_a_journey(kind: type[InvalidInput]) -> None:
    error = kind([Problem("attack.epsilon", "0: must be above 0"), Problem("epochs", "-1: must be above 0")])
    error.add_note("a note")
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is kind
    assert str(arrived) == str(error) == "attack.epsilon: 0: must be above 0\nepochs: -1: must be above 0"
    assert (arrived.problems, arrived.said, arrived.__notes__) == (error.problems, error.said, ["a note"])
    assert kind.single("epochs", "is missing").said == "error: epochs: is missing"
