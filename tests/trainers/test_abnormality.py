"""Abnormal examples of high energy, against hand-made energies and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.diagnostics.abnormality import (
    abnormality_statistics,
    above_natural_quantile,
    above_own_natural,
    largest_change,
)


def energies(*values):
    return torch.tensor(values, dtype=torch.float64)


NATURAL = energies(*range(-10, 1))  # its 0.9 quantile is -1


def chosen(mask):
    return mask.nonzero().flatten().tolist()


def test_above_the_quantile_of_the_natural_energies():
    adversarial = energies(-5, -0.99, -1, 0, *[-20] * 7)
    assert chosen(above_natural_quantile(NATURAL, adversarial)) == [1, 3]
    assert chosen(above_natural_quantile(NATURAL, adversarial, quantile=0.4)) == [0, 1, 2, 3]


def test_above_its_own_natural_energy():
    adversarial = NATURAL + energies(1, 1.001, 0.999, -5, 5, *[0] * 6)
    assert chosen(above_own_natural(NATURAL, adversarial)) == [1, 4]
    assert chosen(above_own_natural(NATURAL, adversarial, rise=4.9)) == [4]


def test_the_largest_changes_of_either_sign():
    adversarial = NATURAL - energies(0, 1, -2, 3, -4, 5, -6, 7, -8, 9, -10)
    assert chosen(largest_change(NATURAL, adversarial)) == [10]
    assert chosen(largest_change(NATURAL, adversarial, share=0.35)) == [7, 8, 9, 10]


def test_statistics_are_those_of_numpy():
    source = torch.Generator().manual_seed(0)
    natural, start, adversarial = 3 * torch.randn(3, 200, 10, generator=source, dtype=torch.float64)
    labels = torch.randint(10, (200,), generator=source)
    z, s, a, y = (part.numpy() for part in (natural, start, adversarial, labels))

    def energy(logits):
        return -np.log(np.exp(logits).sum(1))

    def loss(logits):
        return -logits[np.arange(200), y] - energy(logits)

    easier = loss(s) > loss(a)
    change = np.abs(energy(z) - energy(a))
    expected = {
        "abnormal_count": easier.sum(),
        "abnormal_fraction": easier.mean(),
        "high_energy_abnormal_count/quantile": (easier & (energy(a) > np.quantile(energy(z), 0.9))).sum(),
        "high_energy_abnormal_count/rise": (easier & (energy(a) > energy(z) + 1)).sum(),
        "high_energy_abnormal_count/change": (easier & (change > np.quantile(change, 0.9))).sum(),
        "abnormal_energy/mean": energy(a)[easier].mean(),
    }
    assert min(expected[f"high_energy_abnormal_count/{name}"] for name in ("quantile", "rise", "change")) > 3
    assert abnormality_statistics(natural, start, adversarial, labels) == pytest.approx(expected, rel=1e-12)


def test_without_an_abnormal_example_there_is_no_mean_and_nothing_of_high_energy():
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    statistics = abnormality_statistics(logits, logits, logits, torch.zeros(20, dtype=torch.long))
    assert set(statistics.values()) == {0.0}
    assert "abnormal_energy/mean" not in statistics


def test_the_mean_is_that_of_all_abnormal_examples_also_where_none_has_a_high_energy():
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    adversarial = logits.clone()
    adversarial[3, 0] += 5.0
    statistics = abnormality_statistics(logits, logits, adversarial, torch.zeros(20, dtype=torch.long))
    assert statistics["high_energy_abnormal_count/quantile"] == statistics["high_energy_abnormal_count/rise"] == 0
    assert statistics["abnormal_energy/mean"] == pytest.approx(float(-adversarial[3].logsumexp(0)))


def test_energies_that_single_precision_can_not_tell_apart_are_kept_apart():
    """-1000 less than 5e-5: float32 has steps of 6e-5 there."""
    natural = torch.tensor([[1000.0, 990.0 - place / 10] for place in range(10)])
    adversarial = natural.clone()
    adversarial[0, 1] = 980.0
    statistics = abnormality_statistics(natural, natural, adversarial, torch.zeros(10, dtype=torch.long))
    assert statistics["abnormal_count"] == statistics["high_energy_abnormal_count/quantile"] == 1
