"""Starts follow their class's images, chains descend the energy, stop where they should, and ignore one another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from trainers.data.images import ImageSet
from trainers.generation import settings
from trainers.generation.sampler import Goal, class_energies, generate
from trainers.generation.settings import Dynamics, StartSettings
from trainers.generation.starts import STARTS, local_pca, pca, starts_of
from trainers.problems import InvalidInput

QUIET = Dynamics(step_size=0.02, inertia=0.8, noise=0.0, steps=40)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def as_set(images, labels):
    return ImageSet((images * 255).round().byte().permute(0, 2, 3, 1), labels)


@pytest.fixture(scope="module")
def cloud():
    """300 images [1, 4, 4] of one class: variances 0.01, 0.0025 and tiny along known directions around 0.5."""
    directions = torch.linalg.qr(torch.randn(16, 16, generator=random(1), dtype=torch.float64))[0]
    deviations = torch.tensor([0.1, 0.05] + [1e-3] * 14, dtype=torch.float64)
    amounts = torch.randn(300, 16, generator=random(2), dtype=torch.float64)
    flat = 0.5 + (amounts * deviations) @ directions.T
    return flat.view(300, 1, 4, 4).float(), directions


@pytest.mark.parametrize("start", [pca, local_pca])
def test_pca_starts_have_the_mean_and_the_stated_share_of_the_deviations(start, cloud):
    images, directions = cloud[0][:60], cloud[1]
    starts = start(images, StartSettings(variance=0.999, spread=0.5, neighbors=60))(2000, random()).flatten(1).double()
    assert torch.allclose(starts.mean(0), images.flatten(1).double().mean(0), atol=5e-3)
    along = (starts - starts.mean(0)) @ directions
    of_images = (images.flatten(1).double() - images.flatten(1).double().mean(0)) @ directions
    assert torch.allclose(along[:, :2].std(0), 0.5 * of_images[:, :2].std(0), rtol=0.06)
    assert (along[:, 2:].std(0) < 1e-3).all()


def test_without_a_spread_pca_scales_singular_values_by_0005_as_weats_code_does(cloud):
    images, _ = cloud
    stated = pca(images, StartSettings(spread=0.005 * math.sqrt(299)))(5, random())
    assert torch.equal(pca(images, StartSettings())(5, random()), stated)


@pytest.mark.parametrize("start", [pca, local_pca])
@pytest.mark.parametrize(("variance", "kept"), [(0.5, 1), (0.99, 1), (1.0, 16)])
def test_the_component_that_reaches_the_share_is_left_out_but_one_always_stays(variance, kept, start, cloud):
    settings = StartSettings(variance=variance, spread=1.0, neighbors=60)
    starts = start(cloud[0][:60], settings)(40, random()).flatten(1).double()
    singular = torch.linalg.svdvals(starts - starts.mean(0))
    assert int((singular > 1e-5 * singular[0]).sum()) == kept


def test_local_starts_lie_in_what_scikit_learn_finds_around_an_image(digits):
    images = digits[0][digits[1] == 3]
    flat = images.flatten(1).double().numpy()
    fits = []
    for anchor in flat:
        nearest = flat[np.argsort(((flat - anchor) ** 2).sum(1))[:12]]
        fit = PCA().fit(nearest)
        kept = int((np.cumsum(fit.explained_variance_ratio_) < 0.8).sum())
        fits.append((fit.mean_, fit.components_[:kept], np.sqrt(fit.explained_variance_[:kept])))
    far = 0.0
    for start in local_pca(images, StartSettings(neighbors=12, variance=0.8, spread=0.01))(40, random()):
        distances = []
        for mean, components, deviations in fits:
            amounts = (start.flatten().double().numpy() - mean) @ components.T / (0.01 * deviations)
            inside = np.clip(mean + 0.01 * (amounts * deviations) @ components, 0, 1)
            distances.append((np.abs(start.flatten().numpy() - inside).max(), np.abs(amounts).max()))
        distance, amount = min(distances)
        far = max(far, amount)
        assert distance < 0.01
    assert 1 < far < 6


def test_local_starts_stay_near_images_where_one_pca_would_bridge_two_clusters():
    offsets = torch.zeros(200, 1, 4, 4)
    offsets[:100, :, :2] = 0.6
    images = 0.2 + offsets + 0.02 * torch.randn(200, 1, 4, 4, generator=random(3))
    local = local_pca(images, StartSettings(neighbors=30, spread=0.5))(50, random())
    bridging = pca(images, StartSettings(spread=1.0))(50, random())
    nearest = [torch.cdist(starts.flatten(1), images.flatten(1)).amin(1).mean() for starts in (local, bridging)]
    assert 3 * nearest[0] < nearest[1]


def test_gaussian_starts_have_the_classes_covariance_and_a_ridge(cloud):
    images, directions = cloud
    starts = STARTS["gaussian"](images, StartSettings())(6000, random()).flatten(1).double()
    variances = ((starts - starts.mean(0)) @ directions).var(0)
    of_images = ((images.flatten(1).double() - 0.5) @ directions).var(0)
    assert torch.allclose(variances, of_images + 1e-4, rtol=0.1)
    apart = (images[0] - images[1]).flatten()
    of_two = STARTS["gaussian"](images[:2], StartSettings())(6000, random()).flatten(1) @ apart / apart.norm()
    assert of_two.var().item() == pytest.approx(apart.square().sum().item() / 2 + 1e-4, rel=0.1)


@pytest.mark.parametrize("start", [pca, local_pca])
def test_starts_far_from_the_images_are_clipped(start, cloud):
    starts = start(cloud[0][:60], StartSettings(spread=50.0, neighbors=60))(20, random())
    assert (starts.min(), starts.max()) == (0, 1)


def test_the_defaults_are_those_of_the_published_runs_and_of_this_project():
    """WEAT's run with inertia and its share of PCA; the rest is ours."""
    assert Dynamics() == Dynamics(step_size=0.025, inertia=0.8, noise=0.001, steps=500)
    assert (settings.PCA_VARIANCE, settings.LOCAL_VARIANCE, settings.LOCAL_SPREAD) == (0.99, 0.95, 0.354)
    assert (Goal(torch.zeros(1), torch.ones(1)).tolerance, StartSettings().neighbors) == (0.25, 200)


@pytest.mark.parametrize("name", STARTS)
def test_starts_are_images_and_depend_on_the_seed_alone(name, digits):
    draw = starts_of(name, as_set(*digits), 3, StartSettings(neighbors=20))
    first, again, other = (draw(6, random(seed)) for seed in (0, 0, 1))
    assert first.shape == (6, 1, 8, 8)
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(start.flatten().tolist()) for start in first}) == 6


def test_a_class_of_one_image_is_refused_by_name(digits):
    first = as_set(digits[0][:1], digits[1][:1])
    for label, count in ((int(first.labels[0]), 1), (int(first.labels[0]) ^ 1, 0)):
        with pytest.raises(InvalidInput, match=rf"--init.*pca: class {label} has {count} training image"):
            starts_of("pca", first, label, StartSettings())


class Quadratic(nn.Module):
    """E(x, k) = |x − c_k|² / 2: the dynamics have a closed form."""

    def __init__(self, centers):
        super().__init__()
        self.register_buffer("centers", centers)

    def forward(self, images):
        return -(images.flatten(1)[:, None] - self.centers[None]).square().sum(2) / 2


@pytest.fixture
def quadratic():
    return Quadratic(torch.tensor([[0.3] * 4, [0.6] * 4])).double()


def test_without_noise_a_chain_is_the_damped_oscillation_of_the_equation(quadratic):
    starts, labels = torch.full((2, 1, 2, 2), 0.5).double(), torch.tensor([0, 1])
    made = generate(quadratic, starts, labels, QUIET, random())
    for image, center in zip(made.images, (0.3, 0.6), strict=True):
        x, v = 0.5, 0.0
        for _ in range(QUIET.steps):
            v = QUIET.inertia * v - 0.5 * QUIET.step_size * (x - center)
            x += v
        assert image.flatten().tolist() == pytest.approx([x] * 4, rel=1e-6)
    assert made.steps.tolist() == [QUIET.steps] * 2


def test_noise_has_the_stated_deviation_and_pixels_stay_in_the_box(quadratic):
    flat = Quadratic(torch.zeros(2, 4096)).double()
    still = Dynamics(step_size=1e-12, inertia=0.0, noise=0.01, steps=1)
    starts = torch.full((1, 1, 64, 64), 0.5).double()
    moved = generate(flat, starts, torch.tensor([0]), still, random()).images - starts
    assert moved.std().item() == pytest.approx(0.01, rel=0.05)
    edge = generate(flat, torch.zeros_like(starts), torch.tensor([0]), still, random()).images
    assert 0 == edge.min() < edge.max() <= 1


def test_energy_falls_along_the_chains_of_a_real_net_and_its_trace_is_kept(natural_net, digits):
    images, labels = digits[0][:40], digits[1][:40]
    made = generate(natural_net, images, labels, QUIET, random())
    present = made.chains > 0
    target = (made.target_energy / made.chains.clamp(min=1)[None])[:, present]
    assert made.target_energy.shape == (QUIET.steps + 1, 10)
    assert (target[-1] < target[0]).all()
    with torch.no_grad():
        first, last = natural_net(images), natural_net(made.images)
    for logits, row in ((first, 0), (last, -1)):
        for label in labels.unique().tolist():
            own = logits[labels == label]
            others = [k for k in range(10) if k != label]
            assert made.target_energy[row, label].item() == pytest.approx(-own[:, label].sum().item(), rel=1e-4)
            assert made.other_energy[row, label].item() == pytest.approx(-own[:, others].mean(1).sum().item(), rel=1e-4)
    assert made.chains.tolist() == torch.bincount(labels, minlength=10).tolist()


def test_a_chain_stops_in_the_first_step_in_which_its_energy_is_close_enough_or_below(quadratic):
    starts, labels = torch.full((3, 1, 2, 2), 0.9).double(), torch.tensor([0, 1, 1])
    starts[2] = 0.65
    free = [generate(quadratic, starts[i : i + 1], labels[i : i + 1], QUIET, random()) for i in range(3)]
    goal = Goal(torch.tensor([0.1, 0.02]).double(), torch.tensor([0.2, 0.04]).double(), tolerance=0.5)
    made = generate(quadratic, starts, labels, QUIET, random(), goal)
    for chain in range(3):
        label = int(labels[chain])
        path = free[chain].target_energy[:, label]
        within = (path - goal.mean[label]).abs() < 0.5 * goal.deviation[label]
        first = int((within | (path < goal.mean[label])).int().argmax())
        assert made.steps[chain] == first
        short = Dynamics(QUIET.step_size, QUIET.inertia, 0.0, max(first, 1))
        if first:
            alone = generate(quadratic, starts[chain : chain + 1], labels[chain : chain + 1], short, random())
            torch.testing.assert_close(made.images[chain], alone.images[0], rtol=1e-12, atol=0)
        else:
            assert torch.equal(made.images[chain], starts[chain])
    assert made.steps[2] == 0
    stopped = quadratic(made.images).gather(1, labels[:, None]).neg().flatten()
    assert made.target_energy[-1].tolist() == pytest.approx([stopped[0].item(), stopped[1:].sum().item()], rel=1e-6)


def test_who_stops_does_not_disturb_the_noise_of_the_others(natural_net, digits):
    images, labels = digits[0][:12], digits[1][:12]
    shaken = Dynamics(step_size=0.02, inertia=0.5, noise=0.01, steps=45)
    free = generate(natural_net, images, labels, shaken, random())
    mean = torch.full((10,), -1e9)
    mean[labels[0]] = 1e9  # the chains of one class stop at once, the others never
    made = generate(natural_net, images, labels, shaken, random(), Goal(mean, torch.ones(10)))
    going = labels != labels[0]
    torch.testing.assert_close(made.images[going], free.images[going], rtol=0, atol=1e-4)
    assert torch.equal(made.images[~going], images[~going])


def test_class_energies_are_means_over_the_training_images_of_a_class(natural_net, digits):
    images, labels = digits
    keep = labels != 7
    mean, deviation = class_energies(natural_net, as_set(images[keep], labels[keep]), 100, "cpu")
    with torch.no_grad():
        energy = -natural_net(images)[torch.arange(len(labels)), labels]
    for label in (0, 5, 9):
        own = energy[labels == label]
        assert mean[label].item() == pytest.approx(own.mean().item(), rel=1e-5)
        assert deviation[label].item() == pytest.approx(own.std(correction=0).item(), rel=1e-4)
    assert mean[7].isnan()
    assert mean.shape == deviation.shape == (10,)
