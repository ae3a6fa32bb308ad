"""Defaults that depend on the setting: what the papers (or, where they are silent, this project) choose for it.

A function per slot entry, from the setting to the parameters that differ from the entry's own defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a default may depend on. `epsilon` is in pixels of [0,1], `first_drop` a fraction of the epochs."""

    data: str
    model: str
    inner: str
    single_step: bool
    epsilon: float
    first_drop: float | None

    @property
    def epsilon_255(self) -> int | None:
        """ε in gray levels where it is a whole number of them."""
        levels = 255 * self.epsilon
        return round(levels) if abs(levels - round(levels)) < 1e-6 else None


def _der(setting: Setting) -> dict[str, Any]:
    """Multi-step methods: all samples, in late epochs, weakly (arXiv 2505.22486 says the first two; numbers ours).

    From the first epoch that begins after the learning rate's first drop, which may be within one.
    """
    if setting.single_step:
        return {}
    return {"beta": 0.25, "samples": "all", "start": 0.75 if setting.first_drop is None else setting.first_drop}


# (λ2, λ3) by data set, start of the attack and ε·255: Lin et al. 2023, arXiv 2404.08154, published settings.
_AAER = {
    ("cifar10", "fgsm_rs"): {8: (2.5, 1.5), 12: (5.0, 2.75), 16: (7.0, 3.25), 32: (5.75, 1.5)},
    ("cifar10", "n_fgsm"): {8: (1.5, 0.15), 12: (5.0, 0.55), 16: (8.5, 1.5), 32: (2.75, 0.75)},
    ("cifar100", "fgsm_rs"): {8: (3.5, 1.5), 12: (3.5, 2.75), 16: (6.0, 2.25)},
    ("cifar100", "n_fgsm"): {8: (1.5, 0.15), 12: (3.5, 0.3), 16: (6.0, 0.5)},
}


def nearest_of_aaer(data: str, inner: str, epsilon: float) -> tuple[int, dict[str, Any]]:
    """The published ε·255 that is nearest to `epsilon` (the smaller of two), and AAER's strengths there.

    Other data sets than CIFAR-100 take those of CIFAR-10.
    """
    start = "n_fgsm" if inner == "n_fgsm" else "fgsm_rs"
    table = _AAER.get((data, start), _AAER["cifar10", start])
    levels = min(table, key=lambda published: round(abs(published - 255 * epsilon), 6))
    loss, variation = table[levels]
    return levels, {"loss_strength": loss, "variation_strength": variation}


def _aaer(setting: Setting) -> dict[str, Any]:
    return nearest_of_aaer(setting.data, setting.inner, setting.epsilon)[1]


def _grad_align(setting: Setting) -> dict[str, Any]:
    """The fit of λ over ε by Andriushchenko & Flammarion 2020, arXiv 2007.02617, per data set, for ε up to 16/255.

    Beyond what it was fitted on it would explode (10^15 at ε = 0.5): there it stays what it is at 16/255.
    """
    levels = min(255 * setting.epsilon, 16.0)
    strength = 1.5625 * 1.6 ** (levels / 8) if setting.data == "svhn" else 0.02 * 10 ** (levels / 8)
    return {"strength": strength}


def _n_fgsm(setting: Setting) -> dict[str, Any]:
    """De Jorge et al. 2022, arXiv 2202.01181: k is 2 but for two of their settings."""
    at = (setting.data, setting.model, setting.epsilon_255)
    exceptions: dict[tuple[str, str, int | None], float] = {
        ("svhn", "preact_resnet18", 12): 3.0,
        ("cifar10", "wide_resnet28_10", 16): 4.0,
    }
    return {"noise_scale": exceptions.get(at, 2.0)}


def published_step_size(inner: str, data: str, model: str, epsilon: float) -> str | None:
    """The step of an inner attack where it is no multiple of ε: N-FGSM's 8/255 on SVHN with a wide residual network.

    De Jorge et al. 2022, arXiv 2202.01181, at ε of 10/255 and 12/255.
    """
    levels = round(255 * epsilon, 6)
    exception = inner == "n_fgsm" and data == "svhn" and model == "wide_resnet28_10" and levels in (10, 12)
    return "8/255" if exception else None


def published_beta(method: str, model: str) -> float | None:
    """β of a preset where it depends on the network: MART's is 6 on wide residual networks (ICLR 2020)."""
    return 6.0 if method.removesuffix("_der") == "mart" and model.startswith("wide_resnet") else None


PUBLISHED: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
    "n_fgsm": _n_fgsm,
    "der": _der,
    "aaer": _aaer,
    "grad_align": _grad_align,
}
