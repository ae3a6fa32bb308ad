"""How good generated images are: Inception Score, FID, KID and LPIPS, by torchmetrics, torch-fidelity and lpips.

Definitions are those of the packages: FID and KID between generated images and real ones of the same classes (KID in
subsets), the Inception Score in ten splits; LPIPS twice: from each image to a real one of its class, as WEAT's code has
it, and between images of one class, which is diversity. Without pretrained Inception weights, features of a classifier
take their place and the numbers are called FID-clf, KID-clf and IS-clf: they never compare with FID, KID or IS.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.foreign.weights import read_weights
from trainers.problems import InvalidInput

_KID_SUBSET, _SPLITS = 1000, 10
_INCEPTION_FEATURES = 2048


@dataclass(frozen=True)
class Extractor:
    """`features` and `logits` of uint8 images [B, C, H, W]; `suffix` is appended to the names of the metrics.

    `features` has the attribute `num_features`, which torchmetrics asks for.
    """

    features: nn.Module
    logits: nn.Module
    suffix: str


class _Inception(nn.Module):
    def __init__(self, file: Path, layer: str) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        read_weights(file)  # refuses what is no plain file of tensors before the package unpickles it
        self.network = FeatureExtractorInceptionV3("inception", [layer], feature_extractor_weights_path=str(file))
        self.num_features = _INCEPTION_FEATURES

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.expand(-1, 3, -1, -1))[0]
        return features.flatten(1)


class _Classifier(nn.Module):
    """What the last linear layer of a classifier reads, or its logits."""

    def __init__(self, model: nn.Module, *, logits: bool) -> None:
        super().__init__()
        self.model, self._logits = model, logits
        self._read: list[Tensor] = []
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.register_forward_pre_hook(lambda _module, inputs: self._read.__setitem__(slice(None), inputs))
        self.num_features = last.in_features

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.float() / 255)
        return logits if self._logits else self._read[0].flatten(1)


def inception(file: Path) -> Extractor:
    """Inception-v3 with the weights of torch-fidelity's file. Raises InvalidInput if it is not one."""
    try:
        return Extractor(_Inception(file, str(_INCEPTION_FEATURES)), _Inception(file, "logits_unbiased"), "")
    except (RuntimeError, OSError, KeyError) as error:
        raise InvalidInput.single("--inception", f"{file}: is not torch-fidelity's Inception-v3 ({error})") from error


def classifier(model: nn.Module) -> Extractor:
    """What an independent classifier's last linear layer reads. Raises InvalidInput if it has none."""
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise InvalidInput.single("--classifier", "has no linear layer whose inputs could be its features")
    model = model.eval().requires_grad_(False)
    return Extractor(_Classifier(model, logits=False), _Classifier(model, logits=True), "-clf")


def distribution_metrics(
    generated: Tensor, real: Tensor, extractor: Extractor, *, batch_size: int, seed: int
) -> dict[str, float]:
    """IS, FID and 1,000 KID of uint8 images [N, C, H, W] against real ones [M, C, H, W].

    FID grows as N falls, so its name carries N: `FID-5000`, or `FID-clf-5000` on another network than Inception.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    fid = FrechetInceptionDistance(feature=extractor.features)
    with warnings.catch_warnings():
        # That features are kept is not news: 50,000 of them are 0.4 GB.
        warnings.filterwarnings("ignore", ".*save all extracted features")
        kid = KernelInceptionDistance(
            feature=extractor.features, subset_size=min(_KID_SUBSET, len(generated), len(real)), subsets=50
        )
        score = InceptionScore(feature=extractor.logits, splits=min(_SPLITS, len(generated)))
    for images, is_real in ((real, True), (generated, False)):
        for batch in torch.split(images, batch_size):
            fid.update(batch, real=is_real)
            kid.update(batch, real=is_real)
    for batch in torch.split(generated, batch_size):
        score.update(batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inception_score, distance, kernel_distance = score.compute()[0], fid.compute(), kid.compute()[0]
    suffix = extractor.suffix
    return {
        f"IS{suffix}": float(inception_score),
        f"FID{suffix}-{len(generated)}": float(distance),
        f"KID{suffix} x 1000": 1000 * float(kernel_distance),
    }


def perceptual_distance(backbone: Path) -> nn.Module:
    """LPIPS on AlexNet, from torchvision's file of AlexNet weights; the linear layers come with the package `lpips`.

    Raises InvalidInput if the file does not fit.
    """
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


def perceptual_metrics(
    generated: Tensor, real: Tensor, labels: Tensor, real_labels: Tensor, distance: nn.Module, *, seed: int
) -> dict[str, float]:
    """LPIPS from each uint8 image [N, C, H, W] to a real one of its class, and to a generated one of its class."""
    generator = torch.Generator().manual_seed(seed)
    to_real, within = [], []
    for label in torch.unique(labels).tolist():
        own = _signed(generated[labels == label])
        others = real[real_labels == label]
        chosen = torch.randint(len(others), (len(own),), generator=generator)
        to_real.append(distance(own, _signed(others[chosen])).flatten())
        if len(own) > 1:
            within.append(distance(own, own.roll(1, 0)).flatten())
    found = {"LPIPS to data": float(torch.cat(to_real).mean())}
    return found | ({"LPIPS within class": float(torch.cat(within).mean())} if within else {})


def _signed(images: Tensor) -> Tensor:
    """uint8 as LPIPS wants it: [-1, 1], three channels."""
    return (images.float() / 127.5 - 1).expand(-1, 3, -1, -1)
