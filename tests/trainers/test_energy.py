"""The identities that make a classifier's logits energies, in float64, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.energy import (
    QUANTILES,
    STATISTICS,
    delta_energies,
    energy_statistics,
    joint_energy,
    marginal_energy,
    summarize,
)
from trainers.methods.outer import ce_nat_kl, kl_divergence

B, K = 7, 10


@pytest.fixture
def logits():
    """(natural [B, K], adversarial [B, K], labels [B])."""
    source = torch.Generator().manual_seed(3)
    natural, adversarial = 4 * torch.randn(2, B, K, generator=source, dtype=torch.float64)
    return natural, adversarial, torch.randint(K, (B,), generator=source)


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def ce(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def test_energies_are_those_of_numpy(logits):
    z, _, y = logits
    close(marginal_energy(z), torch.from_numpy(-np.log(np.exp(z.numpy()).sum(1))))
    close(joint_energy(z, y), torch.from_numpy(-z.numpy()[np.arange(B), y.numpy()]))


def test_cross_entropy_is_joint_minus_marginal_energy_and_not_negative(logits):
    z, _, y = logits
    gap = joint_energy(z, y) - marginal_energy(z)
    close(gap, ce(z, y))
    assert (gap >= 0).all()


def test_delta_is_natural_minus_adversarial(logits):
    z, z_adv, y = logits
    delta_marginal, delta_joint = delta_energies(z, z_adv, y)
    close(delta_marginal, z_adv.exp().sum(1).log() - z.exp().sum(1).log())
    close(delta_joint, z_adv[torch.arange(B), y] - z[torch.arange(B), y])


def test_loss_gap_is_the_difference_of_the_deltas(logits):
    z, z_adv, y = logits
    delta_marginal, delta_joint = delta_energies(z, z_adv, y)
    close(ce(z, y) - ce(z_adv, y), delta_joint - delta_marginal)
    assert torch.equal(ce(z_adv, y) < ce(z, y), delta_joint > delta_marginal)


def test_kl_is_a_sum_of_energies(logits):
    z, z_adv, _ = logits
    joint_terms = (z.softmax(1) * (z - z_adv)).sum(1)
    close(kl_divergence(z, z_adv), joint_terms + marginal_energy(z) - marginal_energy(z_adv))


def test_trades_is_a_sum_of_energies(logits):
    z, z_adv, y = logits
    beta = 6.0
    inner = marginal_energy(z_adv) + (z.softmax(1) * (z_adv - z)).sum(1)
    expected = joint_energy(z, y) + (beta - 1) * marginal_energy(z) - beta * inner
    loss = ce_nat_kl(z, z_adv, y, beta=beta)
    close(loss.classification + loss.divergence, expected)


def test_marginal_energy_lies_just_below_the_lowest_joint_energy(logits):
    z, _, _ = logits
    lowest = -z.max(1).values
    assert (marginal_energy(z) <= lowest).all()
    assert (marginal_energy(z) >= lowest - math.log(K)).all()


def test_a_constant_on_all_logits_shifts_energies_and_nothing_else(logits):
    z, z_adv, y = logits
    close(marginal_energy(z + 5), marginal_energy(z) - 5)
    close(ce(z + 5, y), ce(z, y))
    close(kl_divergence(z + 5, z_adv), kl_divergence(z, z_adv))
    for shifted, plain in zip(delta_energies(z + 5, z_adv + 5, y), delta_energies(z, z_adv, y), strict=True):
        close(shifted, plain)
    close(delta_energies(z + 5, z_adv, y)[0], delta_energies(z, z_adv, y)[0] - 5)


def test_energy_gradients_are_minus_softmax_and_minus_one_hot(logits):
    z, _, y = logits
    z.requires_grad_()
    (marginal,) = torch.autograd.grad(marginal_energy(z).sum(), z)
    (joint,) = torch.autograd.grad(joint_energy(z, y).sum(), z)
    close(marginal, -z.detach().softmax(1))
    close(joint, -F.one_hot(y, K).double())


@pytest.mark.parametrize(("classes", "energy"), [(10, -2.303), (100, -4.605), (200, -5.298)])
def test_zero_logits_have_energy_minus_log_k(classes, energy):
    assert marginal_energy(torch.zeros(1, classes)).item() == pytest.approx(energy, abs=5e-4)


def test_energies_survive_logits_whose_exponential_overflows():
    assert marginal_energy(torch.tensor([[200.0, 0.0]])).item() == -200.0


def test_summary_is_that_of_numpy():
    values = torch.randn(101, generator=torch.Generator().manual_seed(0))
    x = values.double().numpy()
    expected = [x.mean(), x.std(), x.min(), x.max(), *np.quantile(x, QUANTILES)]
    assert list(summarize(values)) == list(STATISTICS)
    np.testing.assert_allclose(list(summarize(values).values()), expected, rtol=1e-12)


def test_energy_statistics_name_quantity_and_statistic(logits):
    z, z_adv, y = logits
    statistics = energy_statistics(z, z_adv, y)
    assert statistics["delta_energy/mean"] == pytest.approx(delta_energies(z, z_adv, y)[0].mean().item())
    assert statistics["adversarial_joint_energy/min"] == pytest.approx(joint_energy(z_adv, y).min().item())
    assert len(statistics) == 6 * len(STATISTICS)
