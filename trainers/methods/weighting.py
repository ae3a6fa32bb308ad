"""Per-sample weights [B] of the outer loss. They carry no gradient, but for MART's factor."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainers import answers
from trainers.energy import marginal_energy
from trainers.methods.step_tensors import StepTensors

_LARGEST_EXPONENT = 700.0  # of a power of e in float64


def energy(step: StepTensors) -> Tensor:
    """1 / softplus(|E(x)|), from the train-mode natural logits (WEAT, arXiv 2407.06315).

    The loss is divided by B, not by the sum of the weights: as |E| grows, so shrinks the effective learning rate.
    """
    return 1.0 / F.softplus(marginal_energy(step.required("natural_logits").detach()).abs())


def margin(step: StepTensors, *, slope: float, bias: float, normalize: str) -> Tensor:
    """sigmoid(s (PM + b)), PM = max_{k≠y} p_k(x*) − p_y(x*) (MAIL, Wang et al. 2021, arXiv 2106.07904).

    `normalize`: `x3` multiplies by 3 as the published code does, `mean1` makes the mean over the global batch 1.
    """
    probabilities = step.adversarial_logits.detach().softmax(dim=1)
    steepened = slope * (-answers.margin(probabilities, step.labels) + bias)
    if normalize == "mean1":
        # A factor that all ranks know keeps weights that are all tiny, under a large slope, from having the mean 0.
        logarithms = F.logsigmoid(steepened.double()) - slope * min(bias, 0.0)
        scaled = logarithms.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).exp()
        return (scaled / step.mean_over_ranks(scaled.mean())).to(steepened.dtype)
    weights = steepened.sigmoid()
    return 3.0 * weights if normalize == "x3" else weights


def misclassification(step: StepTensors) -> Tensor:
    """1.0000001 − p_y(x), *with* gradient: MART's factor on the KL (Wang et al. 2020, ICLR 2020)."""
    probabilities = step.required("natural_logits").softmax(dim=1)
    return 1.0000001 - probabilities.gather(1, step.labels[:, None]).squeeze(1)
