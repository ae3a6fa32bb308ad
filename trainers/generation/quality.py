"""How good generated images are: Inception Score, FID, KID and LPIPS, by torchmetrics, torch-fidelity and lpips.

Definitions are those of the packages: FID and KID between generated images and real ones of the same classes (KID in
subsets), the Inception Score in ten splits; LPIPS twice: from each image to a real one of its class, as WEAT's code has
it, and between images of one class, which is diversity. Without pretrained Inception weights, features of a classifier
take their place and the numbers are called FID-clf, KID-clf and IS-clf: they never compare with FID, KID or IS.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.foreign.weights import read_weights
from trainers.problems import InvalidInput
from trainers.randomness import kept_random_state

_KID_SUBSET, _SPLITS = 1000, 10
_LAYERS = ("2048", "logits_unbiased")
# AlexNet's third pooling has nothing left to pool of anything smaller.
LEAST_SIDE = 31


@dataclass(frozen=True)
class Looked:
    """What a network sees in N images: features [N, d] and logits [N, K]."""

    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Extractor:
    """`network` maps uint8 images [B, C, H, W] to features and logits; `suffix` is appended to names of metrics."""

    network: nn.Module
    suffix: str

    @torch.no_grad()
    def look(self, images: Tensor, batch_size: int, device: torch.device) -> Looked:
        """At uint8 images [N, C, H, W], in batches, on `device`. The answer lies on the CPU."""
        network = self.network.to(device)
        parts = [[part.cpu() for part in network(batch.to(device))] for batch in torch.split(images, batch_size)]
        features, logits = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return Looked(features, logits)


class _Inception(nn.Module):
    def __init__(self, file: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        read_weights(file)  # refuses what is no plain file of tensors before the package unpickles it
        self.network = FeatureExtractorInceptionV3("inception", list(_LAYERS), feature_extractor_weights_path=str(file))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(images.expand(-1, 3, -1, -1))
        return features, logits


class _Classifier(nn.Module):
    """What the last linear layer of a classifier reads, and its logits."""

    def __init__(self, model: nn.Module, last: nn.Linear) -> None:
        super().__init__()
        self.model = model
        self._read: list[Tensor] = []
        last.register_forward_pre_hook(lambda _module, inputs: self._read.__setitem__(slice(None), inputs))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.model(images.float() / 255)
        return self._read[0].flatten(1), logits


class _AsItIs(nn.Identity):
    """In the place of a metric's own network: it is given features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _require(option: str, *packages: str) -> None:
    """Raise InvalidInput for a metric whose packages are missing: now, and not when all images are there."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InvalidInput.single(
            option,
            f"needs {' and '.join(missing)}; install this package with its extra: energy-orchestrator[generation]",
        )


def inception(file: Path) -> Extractor:
    """Inception-v3 with the weights of torch-fidelity's file. Raises InvalidInput if it is not one."""
    _require("--inception", "torch_fidelity", "torchmetrics")
    try:
        return Extractor(_Inception(file), "")
    except (RuntimeError, OSError, KeyError) as error:
        raise InvalidInput.single("--inception", f"{file}: is not torch-fidelity's Inception-v3 ({error})") from error


def classifier(model: nn.Module) -> Extractor:
    """What an independent classifier's last linear layer reads. Raises InvalidInput if it has none."""
    _require("--classifier", "torchmetrics")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InvalidInput.single("--classifier", "has no linear layer whose inputs could be its features")
    return Extractor(_Classifier(model.eval().requires_grad_(False), linear[-1]), "-clf")


def distribution_metrics(generated: Looked, real: Looked, suffix: str, *, seed: int) -> dict[str, float]:
    """IS, FID and 1,000 KID of N generated images against real ones, both looked at by one extractor.

    FID grows as N falls, so its name carries N: `FID-5000`, or `FID-clf-5000` on another network than Inception.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    (count, width), others = generated.features.shape, len(real.features)
    fid = FrechetInceptionDistance(feature=_AsItIs(width))
    with warnings.catch_warnings():
        # That features are kept is not news: 50,000 of them are 0.4 GB.
        warnings.filterwarnings("ignore", ".*save all extracted features")
        kid = KernelInceptionDistance(feature=_AsItIs(width), subset_size=min(_KID_SUBSET, count, others), subsets=50)
        score = InceptionScore(feature=nn.Identity(), splits=min(_SPLITS, count))
    for looked, is_real in ((real, True), (generated, False)):
        fid.update(looked.features, real=is_real)
        kid.update(looked.features, real=is_real)
    score.update(generated.logits)
    with kept_random_state():
        torch.manual_seed(seed)
        inception_score, distance, kernel_distance = score.compute()[0], fid.compute(), kid.compute()[0]
    return {
        f"IS{suffix}": float(inception_score),
        f"FID{suffix}-{count}": float(distance),
        f"KID{suffix} x 1000": 1000 * float(kernel_distance),
    }


def perceptual_distance(backbone: Path) -> nn.Module:
    """LPIPS on AlexNet, from torchvision's file of AlexNet weights; the linear layers come with the package `lpips`.

    Raises InvalidInput if the file does not fit.
    """
    _require("--alexnet", "lpips")
    import lpips

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")  # the package's own call is an old one
        network: nn.Module = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    weights = read_weights(backbone)
    for piece in (network.get_submodule(f"net.slice{number}") for number in range(1, 6)):
        for name, layer in piece.named_children():
            if isinstance(layer, nn.Conv2d):
                try:
                    layer.load_state_dict({part: weights[f"features.{name}.{part}"] for part in ("weight", "bias")})
                except (KeyError, RuntimeError) as error:
                    raise InvalidInput.single("--alexnet", f"{backbone}: is not torchvision's ({error})") from error
    return network


@torch.no_grad()
def perceptual_metrics(
    generated: Tensor, real: Tensor, labels: Tensor, real_labels: Tensor, distance: nn.Module, *, batch_size: int,
    seed: int, device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """LPIPS from each uint8 image [N, C, H, W] to a real one of its class, and to a generated one of its class."""
    generator, distance = torch.Generator().manual_seed(seed), distance.to(device)

    def between(left: Tensor, right: Tensor) -> Tensor:
        pairs = zip(torch.split(left, batch_size), torch.split(right, batch_size), strict=True)
        return torch.cat([distance(_signed(a.to(device)), _signed(b.to(device))).flatten().cpu() for a, b in pairs])

    to_real, within = [], []
    for label in torch.unique(labels).tolist():
        own, others = generated[labels == label], real[real_labels == label]
        to_real.append(between(own, others[torch.randint(len(others), (len(own),), generator=generator)]))
        if len(own) > 1:
            within.append(between(own, own.roll(1, 0)))
    found = {"LPIPS to data": float(torch.cat(to_real).mean())}
    return found | ({"LPIPS within class": float(torch.cat(within).mean())} if within else {})


def _signed(images: Tensor) -> Tensor:
    """uint8 as LPIPS wants it: [-1, 1], three channels."""
    return (images.float() / 127.5 - 1).expand(-1, 3, -1, -1)
