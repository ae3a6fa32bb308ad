"""What images are drawn with: where chains begin, how they move, when they stop; and the defaults. No torch."""

from __future__ import annotations

from dataclasses import dataclass

# Shares of the variance that the kept components of PCA, and of local PCA, explain together at most: WEAT's and ours.
PCA_VARIANCE, LOCAL_VARIANCE = 0.99, 0.95
# κ of local PCA, in standard deviations; PCA's own depends on the number of images.
LOCAL_SPREAD = 0.354
# How near to its class's mean energy a chain is done, in standard deviations of that energy: this project's.
TOLERANCE = 0.25


@dataclass(frozen=True)
class StartSettings:
    """`variance` is the share that the kept components explain together at most; `spread` is κ, in standard deviations.

    Without `spread` PCA has that of WEAT's code, 0.005 sqrt(n − 1) for n images of the class, and local PCA its own.
    `neighbors` is how many images, the anchor included, local PCA looks at.
    """

    variance: float | None = None
    spread: float | None = None
    neighbors: int = 200


@dataclass(frozen=True)
class Dynamics:
    """η, ζ, the standard deviation of the noise, and the most steps a chain takes; defaults are WEAT's with inertia."""

    step_size: float = 0.025
    inertia: float = 0.8
    noise: float = 0.001
    steps: int = 500
