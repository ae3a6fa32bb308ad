"""Where a chain begins: images drawn from a simple model of one class's training images.

Class-wise PCA is that of WEAT (arXiv 2407.06315, section 5); local class-wise PCA is named by the paper of DER (arXiv
2505.22486), its recipe is this project's. Pixels are in [0,1], images flattened to d = C·H·W numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from trainers.problems import InvalidInput

# WEAT's code scales singular values by 0.005: with n images that is 0.005 sqrt(n - 1) standard deviations.
_OF_SINGULAR_VALUES = 0.005
_GAUSSIAN_RIDGE = 1e-4
NEIGHBORS = 200


@dataclass(frozen=True)
class Settings:
    """`variance` is the share that the kept components explain together at most; `spread` is κ, in standard deviations.

    Without `spread` PCA has that of WEAT's code, 0.005 sqrt(n − 1) for n images of the class, and local PCA 0.354.
    `neighbors` is how many images, the anchor included, local PCA looks at.
    """

    variance: float | None = None
    spread: float | None = None
    neighbors: int = NEIGHBORS


Draw = Callable[[int, torch.Generator], Tensor]


def pca(images: Tensor, settings: Settings) -> Draw:
    """x_0 = clip(μ + κ Σ_i std_i a_i U_i), a ~ N(0,1), over the leading components of one class's images [n, C, H, W].

    As in WEAT's code the component that reaches `variance` (0.99) is left out; the first one always stays.
    """
    return _gaussian_along(images, *_components(images, settings.variance or 0.99), _spread(images, settings))


def local_pca(images: Tensor, settings: Settings) -> Draw:
    """The same around one image of the class: PCA of the nearest `neighbors` in L2, anew for every start.

    Starts differ more from one another than those of one PCA and lie further from where images are dense.
    """
    flat = images.flatten(1).double()
    count = min(settings.neighbors, len(flat))
    spread = 0.354 if settings.spread is None else settings.spread

    def draw(number: int, generator: torch.Generator) -> Tensor:
        anchors = torch.randint(len(flat), (number,), generator=generator)
        starts = []
        for anchor in anchors:
            nearest = (flat - flat[anchor]).square().sum(1).topk(count, largest=False).indices
            neighborhood = images[nearest]
            directions = _components(neighborhood, settings.variance or 0.95)
            starts.append(_gaussian_along(neighborhood, *directions, spread)(1, generator))
        return torch.cat(starts)

    return draw


def gaussian(images: Tensor, settings: Settings) -> Draw:
    """N(μ, Σ + 1e-4 I) of one class's images [n, C, H, W], clipped."""
    directions, deviations = _components(images, 1.0)
    along = _gaussian_along(images, directions, deviations, 1.0, clip=False)

    def draw(number: int, generator: torch.Generator) -> Tensor:
        starts = along(number, generator)
        ridge = torch.randn(starts.shape, generator=generator, dtype=starts.dtype)
        return (starts + math.sqrt(_GAUSSIAN_RIDGE) * ridge).clamp(0, 1)

    return draw


def noise(images: Tensor, settings: Settings) -> Draw:
    """U(0,1) for every pixel."""
    shape = images.shape[1:]
    return lambda number, generator: torch.rand((number, *shape), generator=generator)


STARTS: dict[str, Callable[[Tensor, Settings], Draw]] = {
    "pca": pca,
    "local_pca": local_pca,
    "gaussian": gaussian,
    "noise": noise,
}


def starts_of(name: str, images: Tensor, labels: Tensor, settings: Settings) -> dict[int, Draw]:
    """Class -> how its starts are drawn, from training images [N, C, H, W] in [0,1] and labels [N].

    Raises InvalidInput if a class has fewer than two images.
    """
    draws = {}
    for label in torch.unique(labels).tolist():
        of_class = images[labels == label]
        if len(of_class) < 2 and name != "noise":
            raise InvalidInput.single("--init", f"{name}: class {label} has {len(of_class)} training image(s); needs 2")
        draws[label] = STARTS[name](of_class, settings)
    return draws


def _components(images: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """(directions [m, d], standard deviations [m]) of the leading components that explain less than `variance`."""
    fitted = PCA(svd_solver="full").fit(images.flatten(1).double().numpy())
    explained = np.cumsum(fitted.explained_variance_ratio_)
    kept = len(explained) if variance >= 1 else max(1, int((explained < variance).sum()))
    return torch.from_numpy(fitted.components_[:kept]), torch.from_numpy(fitted.explained_variance_[:kept]).sqrt()


def _spread(images: Tensor, settings: Settings) -> float:
    return _OF_SINGULAR_VALUES * math.sqrt(len(images) - 1) if settings.spread is None else settings.spread


def _gaussian_along(
    images: Tensor, directions: Tensor, deviations: Tensor, spread: float, *, clip: bool = True
) -> Draw:
    mean = images.flatten(1).double().mean(0)

    def draw(number: int, generator: torch.Generator) -> Tensor:
        amounts = torch.randn(number, len(deviations), generator=generator, dtype=torch.float64)
        flat = mean + spread * (amounts * deviations) @ directions
        starts = flat.view(number, *images.shape[1:]).float()
        return starts.clamp(0, 1) if clip else starts

    return draw
