"""After how many epochs trials are compared."""

from __future__ import annotations

import pytest

from search_spaces.stopping import Pruning


@pytest.mark.parametrize(
    ("rule", "reduction", "epochs", "compared"),
    [
        ("asha", None, 18, [2, 4, 8, 16]),
        ("asha", 3, 18, [2, 6]),  # the next would be after the last epoch, where nothing is left to save
        ("asha", None, 3, [2]),
        ("median", None, 6, [2, 3, 4, 5]),
    ],
)
def test_comparisons_end_before_the_last_epoch(rule, reduction, epochs, compared):
    pruning = Pruning(rule=rule, grace_epochs=2, reduction=reduction)
    for trial in (0, 1, 7):
        assert list(pruning.comparisons(trial, epochs)) == compared
        assert pruning.bracket(trial, epochs) == 0


def test_brackets_of_hyperband_begin_later_one_by_one_and_the_last_never_stops():
    pruning = Pruning(rule="hyperband", grace_epochs=2, reduction=3)
    assert [list(pruning.comparisons(trial, 18)) for trial in range(5)] == [[2, 6], [6], [], [2, 6], [6]]
    assert [pruning.bracket(trial, 18) for trial in range(5)] == [0, 1, 2, 0, 1]
