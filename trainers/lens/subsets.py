"""Which training images a reference net finds hard or easy: the subsets of WEAT's experiment (2407.06315, fig. 5a).

High-energy images matter for robustness about as much as misclassified ones, low-energy ones hardly: trained again
without a subset, or with it unperturbed, a net shows it.
"""

from __future__ import annotations

import numpy as np

from trainers.lens.points import Array


def choose_subsets(energy: Array, correct: Array, *, seed: int) -> dict[str, Array]:
    """Positions (sorted) of four sets of the same size among N images with E(x) `energy` [N] and `correct` [N].

    As many as are misclassified: all of those; the correct ones of the highest and of the lowest energy; correct ones
    at random. If fewer images are correct, all sets are cut to their number, the misclassified ones at random. The high
    and the low set overlap where they are more than half of the correct images. Raises ValueError if none is
    misclassified or none correct.
    """
    right, wrong = np.flatnonzero(correct), np.flatnonzero(~correct)
    size = min(len(right), len(wrong))
    if size == 0:
        raise ValueError("a reference net that is always right, or always wrong, tells no subsets apart")
    source = np.random.default_rng(seed)
    by_energy = right[np.argsort(energy[right], kind="stable")]
    chosen = {
        "misclassified": source.permutation(wrong)[:size],
        "high_energy": by_energy[-size:],
        "low_energy": by_energy[:size],
        "random": source.permutation(right)[:size],
    }
    return {name: np.sort(positions) for name, positions in chosen.items()}
