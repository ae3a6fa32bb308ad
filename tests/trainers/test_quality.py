"""Quality metrics are what their names say, and pretrained networks come from files that execute nothing."""

from __future__ import annotations

import importlib.util
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchvision.models import alexnet

from trainers.generation.quality import (
    classifier,
    distribution_metrics,
    inception,
    perceptual_distance,
    perceptual_metrics,
)  # fmt: skip
from trainers.problems import InvalidInput

CPU = torch.device("cpu")


def as_bytes(images):
    return (images * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def judge(natural_net):
    return classifier(natural_net)


@pytest.fixture(scope="module")
def measured(judge):
    """`measured(generated, real)`: metrics of uint8 images by what the judge sees in them."""

    def called(generated, real):
        return distribution_metrics(judge.look(generated, 50, CPU), judge.look(real, 64, CPU), judge.suffix, seed=0)

    return called


@pytest.fixture(scope="module")
def real(digits):
    return as_bytes(digits[0][:200])


def test_a_classifiers_metrics_are_never_called_fid(measured, real):
    found = measured(real[:60], real)
    assert list(found) == ["IS-clf", "FID-clf-60", "KID-clf x 1000"]


def test_fid_is_the_frechet_distance_of_what_the_last_layer_reads(measured, real, natural_net):
    generated = as_bytes((real.float() / 255 + 0.2 * torch.rand(real.shape)).clamp(0, 1))[:150]
    found = measured(generated, real)["FID-clf-150"]
    body = natural_net.network[:-1]
    with torch.no_grad():
        first, second = (body(images.float() / 255).double().numpy() for images in (generated, real))
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert found == pytest.approx(expected, rel=1e-3)
    itself = measured(real, real)["FID-clf-200"]
    assert abs(itself) < 1e-3 * found


def test_kid_is_the_squared_mean_discrepancy_under_a_cubic_kernel(measured, real, natural_net):
    """Of as many images as there are real ones every subset is all of them."""
    generated = as_bytes((real.float() / 255 + 0.2 * torch.rand(real.shape)).clamp(0, 1))[:60]
    with torch.no_grad():
        x, y = (natural_net.network[:-1](images.float() / 255).double() for images in (generated, real[:60]))

    def kernel(left, right):
        return (left @ right.T / left.shape[1] + 1) ** 3

    within = sum((kernel(z, z).sum() - kernel(z, z).trace()) / (60 * 59) for z in (x, y))
    expected = 1000 * float(within - 2 * kernel(x, y).mean())
    assert measured(generated, real[:60])["KID-clf x 1000"] == pytest.approx(expected, rel=1e-3)


def test_the_inception_score_is_that_of_its_definition(measured, real):
    found = measured(real[:10], real)["IS-clf"]
    # Ten images in ten splits: each alone, so that KL(p(y|x) || p(y)) is zero and the score is one.
    assert found == pytest.approx(1.0, abs=1e-5)
    many = measured(real, real)["IS-clf"]
    assert 1 < many < 10


@pytest.mark.parametrize(
    ("open_", "option", "missing"),
    [
        (inception, "--inception", "torch_fidelity and torchmetrics"),
        (classifier, "--classifier", "torchmetrics"),
        (perceptual_distance, "--alexnet", "lpips"),
    ],
)
def test_packages_that_are_missing_are_named_before_any_image_is_made(
    open_, option, missing, natural_net, tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _package: None)
    with pytest.raises(InvalidInput, match=rf"^{option}: needs {missing}; .*energy-orchestrator\[generation\]"):
        open_(natural_net if open_ is classifier else tmp_path / "weights.pth")


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(InvalidInput, match=r"--classifier.*no linear layer"):
        classifier(torch.nn.Sequential(torch.nn.Flatten()))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = alexnet(weights=None)
    file = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save({name: value for name, value in network.state_dict().items() if "features" in name}, file)
    return file


def test_lpips_is_zero_to_itself_and_grows_with_the_distance(backbone):
    images = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    near, far = ((images + scale * torch.rand(images.shape)).clamp(0, 1) for scale in (0.05, 0.6))
    lpips = partial(perceptual_metrics, distance=perceptual_distance(backbone), batch_size=4, seed=0, device=CPU)
    labels = torch.arange(6)
    to_data = [
        lpips(as_bytes(changed), as_bytes(images), labels, labels)["LPIPS to data"] for changed in (images, near, far)
    ]
    assert to_data[0] == pytest.approx(0, abs=1e-6)
    assert 0 < to_data[1] < to_data[2]
    within = lpips(as_bytes(images), as_bytes(images), labels * 0, labels * 0)
    assert within["LPIPS within class"] > 0


class Apart(torch.nn.Module):
    """A distance that is known: how far apart the pixels are on average, of [-1, 1]."""

    def forward(self, left, right):
        return (left - right).abs().mean((1, 2, 3))


def test_perceptual_distances_are_means_over_all_pairs_of_one_class():
    generated, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1])
    generated[1] = 255
    real = torch.full((4, 1, 4, 4), 255, dtype=torch.uint8)
    real[3] = 0
    found = perceptual_metrics(
        generated, real, labels, torch.tensor([0, 0, 0, 1]), Apart(), batch_size=2, seed=0, device=CPU
    )
    assert found == {"LPIPS to data": pytest.approx((2 + 0 + 0) / 3), "LPIPS within class": pytest.approx(2)}


@pytest.mark.parametrize(("open_", "option"), [(perceptual_distance, "--alexnet"), (inception, "--inception")])
def test_files_of_another_network_are_refused(open_, option, tmp_path):
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InvalidInput, match=option):
        open_(tmp_path / "other.pth")


@pytest.mark.parametrize("open_", [perceptual_distance, inception])
def test_files_that_would_execute_something_are_refused(open_, tmp_path):
    class Malicious:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'executed')!r}, 'w').close()",)

    torch.save({"weight": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(InvalidInput, match="refused"):
        open_(tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


def test_inception_reads_the_file_of_torch_fidelity(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as package

    network = package.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(package, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        made = network("inception", ["2048"])
    torch.save(made.state_dict(), tmp_path / "inception.pth")
    judge = inception(tmp_path / "inception.pth")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    looked = judge.look(images, 1, CPU)
    assert looked.features.shape == (2, 2048)
    torch.testing.assert_close(looked.features, made.eval()(images)[0])
    assert judge.suffix == ""
