"""Where a chain begins: images drawn from a simple model of one class's training images.

Class-wise PCA is that of WEAT (arXiv 2407.06315, section 5); local class-wise PCA is named by the paper of DER (arXiv
2505.22486), its recipe is this project's. Pixels are in [0,1], images flattened to d = C·H·W numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from trainers.data.images import ImageSet, to_floats
from trainers.generation.settings import LOCAL_SPREAD, LOCAL_VARIANCE, PCA_VARIANCE, StartSettings
from trainers.problems import InvalidInput

# WEAT's code scales singular values by 0.005: with n images that is 0.005 sqrt(n - 1) standard deviations.
_OF_SINGULAR_VALUES = 0.005
_GAUSSIAN_RIDGE = 1e-4

Draw = Callable[[int, torch.Generator], Tensor]
# How many neighborhoods are looked at together: of 200 images of 3 x 32 x 32 they are 80 MB.
_TOGETHER = 16


def pca(images: Tensor, settings: StartSettings) -> Draw:
    """x_0 = clip(μ + κ Σ_i std_i a_i U_i), a ~ N(0,1), over the leading components of one class's images [n, C, H, W].

    As in WEAT's code the component that reaches `variance` is left out; the first one always stays.
    """
    flat = images.flatten(1).double()
    # The covariance of more images than pixels is the smaller problem, by a factor of four in time.
    fitted = PCA(svd_solver="covariance_eigh" if len(flat) > flat.shape[1] else "full").fit(flat.numpy())
    kept = max(1, int((np.cumsum(fitted.explained_variance_ratio_) < (settings.variance or PCA_VARIANCE)).sum()))
    if settings.variance == 1:
        kept = len(fitted.components_)
    along = torch.from_numpy(fitted.components_[:kept] * np.sqrt(fitted.explained_variance_[:kept, None]))
    spread = _OF_SINGULAR_VALUES * math.sqrt(len(flat) - 1) if settings.spread is None else settings.spread
    mean, shape = flat.mean(0), images.shape[1:]

    def draw(number: int, generator: torch.Generator) -> Tensor:
        amounts = torch.randn(number, kept, generator=generator, dtype=torch.float64)
        return (mean + spread * amounts @ along).view(number, *shape).float().clamp(0, 1)

    return draw


def local_pca(images: Tensor, settings: StartSettings) -> Draw:
    """The same around one image of the class: PCA of the nearest `neighbors` in L2, anew for every start.

    Starts differ more from one another than those of one PCA and lie further from where images are dense.
    """
    flat, shape = images.flatten(1), images.shape[1:]
    count = min(settings.neighbors, len(flat))
    spread = LOCAL_SPREAD if settings.spread is None else settings.spread

    def draw(number: int, generator: torch.Generator) -> Tensor:
        anchors = torch.randint(len(flat), (number,), generator=generator)
        amounts = torch.randn(number, count, generator=generator, dtype=torch.float64)
        starts = []
        for own, chosen in zip(torch.split(amounts, _TOGETHER), torch.split(flat[anchors], _TOGETHER), strict=True):
            nearest = torch.cdist(chosen, flat).topk(count, largest=False).indices
            starts.append(_along_leading(flat[nearest].double(), own, settings.variance or LOCAL_VARIANCE, spread))
        return torch.cat(starts).view(number, *shape).float().clamp(0, 1)

    return draw


def gaussian(images: Tensor, settings: StartSettings) -> Draw:
    """N(μ, Σ + 1e-4 I) of one class's images [n, C, H, W], clipped."""
    flat, shape = images.flatten(1), images.shape[1:]
    mean = flat.mean(0)
    # Sums of the centered images with normal amounts have their covariance: no factor of Σ is needed.
    centered = (flat - mean) / math.sqrt(len(flat) - 1)

    def draw(number: int, generator: torch.Generator) -> Tensor:
        drawn = mean + torch.randn(number, len(centered), generator=generator) @ centered
        ridge = torch.randn(drawn.shape, generator=generator)
        return (drawn + math.sqrt(_GAUSSIAN_RIDGE) * ridge).view(number, *shape).clamp(0, 1)

    return draw


def noise(images: Tensor, settings: StartSettings) -> Draw:
    """U(0,1) for every pixel."""
    shape = images.shape[1:]
    return lambda number, generator: torch.rand((number, *shape), generator=generator)


STARTS: dict[str, Callable[[Tensor, StartSettings], Draw]] = {
    "pca": pca,
    "local_pca": local_pca,
    "gaussian": gaussian,
    "noise": noise,
}


def starts_of(name: str, images: ImageSet, label: int, settings: StartSettings) -> Draw:
    """How starts of a class are drawn, from its training images. Raises InvalidInput if it has fewer than two."""
    of_class = images.take(images.labels == label)
    if len(of_class) < 2:
        raise InvalidInput.single("--init", f"{name}: class {label} has {len(of_class)} training image(s); needs 2")
    return STARTS[name](to_floats(of_class), settings)


def _along_leading(images: Tensor, amounts: Tensor, variance: float, spread: float) -> Tensor:
    """μ + κ Σ_i std_i a_i U_i [b, d] of b sets of images [b, k, d], from one normal amount for each image [b, k].

    The singular vectors of few images in many pixels come from their products with one another. The amounts, projected
    on those of the leading components, are the a_i; which sign a component has then does not matter.
    """
    mean = images.mean(1)
    centered = images - mean[:, None]
    squares, vectors = torch.linalg.eigh(centered @ centered.mT)
    shares = squares.flip(1).cumsum(1) / squares.sum(1, keepdim=True)
    leading = shares < variance if variance < 1 else torch.ones_like(shares, dtype=torch.bool)
    leading[:, 0] = True
    projection = vectors * leading.flip(1)[:, None]
    projected = projection @ (projection.mT @ amounts[:, :, None])
    scale = spread / math.sqrt(images.shape[1] - 1)
    starts: Tensor = mean + scale * (projected.mT @ centered).squeeze(1)
    return starts
