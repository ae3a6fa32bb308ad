"""Training steps as the methods' public codes do them: the other side of the comparison.

Written anew from the papers' algorithms, each with the habits of its code. The attacks of the single-step methods and
of SAT call `backward` and so compute gradients of the weights that nobody uses. Those of TRADES, WEAT, MAIL-TRADES and
MART do not; where they raise the KL, they compute natural logits that do not change in every step. All read metrics
from the device in every step. Random numbers come from the same stream as ours, so that one step moves the weights
alike; `tests/benchmarks` holds that to 1e-9 in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.randomness import Noise


@dataclass
class Log:
    """What the public loops sum up in Python numbers, step by step."""

    loss: float = 0.0
    correct: int = 0
    count: int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Reads both numbers from the device."""
        self.loss += loss.item() * len(labels)
        self.correct += int((logits.max(1)[1] == labels).sum().item())
        self.count += len(labels)


Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor, Noise, Log], None]
EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, logits: Tensor, labels: Tensor, log: Log) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    log.add(loss, logits, labels)


def _single_step(reach: float, step_size: float, clip: bool) -> Step:
    """FGSM from noise U(-reach, reach)."""

    def step(
        model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, noise: Noise, log: Log
    ) -> None:
        delta = (images + noise.uniform(images, -reach, reach)).clamp(0, 1) - images
        delta.requires_grad_()
        F.cross_entropy(model(images + delta), labels).backward()
        moved = delta.detach() + step_size * delta.grad.sign()
        if clip:
            moved = moved.clamp(-EPSILON, EPSILON)
        adversarial = (images + moved).clamp(0, 1)
        logits = model(adversarial)
        _update(optimizer, F.cross_entropy(logits, labels), logits, labels, log)

    return step


def sat(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, noise: Noise, log: Log
) -> None:
    """PGD-AT after Rice et al. 2020: one pass more to compare restarts, and one over the natural images for the log."""
    delta = (images + noise.uniform(images, -EPSILON, EPSILON)).clamp(0, 1) - images
    delta.requires_grad_()
    for _ in range(STEPS):
        F.cross_entropy(model(images + delta), labels).backward()
        moved = (delta.detach() + STEP_SIZE * delta.grad.sign()).clamp(-EPSILON, EPSILON)
        delta.data = (images + moved).clamp(0, 1) - images
        delta.grad.zero_()
    F.cross_entropy(model(images + delta), labels, reduction="none").detach()
    logits = model((images + delta.detach()).clamp(0, 1))
    _update(optimizer, F.cross_entropy(logits, labels), logits, labels, log)
    natural = model(images)
    log.add(F.cross_entropy(natural, labels), natural, labels)


def _kl(adversarial_logits: Tensor, natural_logits: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(adversarial_logits, 1), F.softmax(natural_logits, 1), reduction="none").sum(1)


def _eval_attack(model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, kl: bool) -> Tensor:
    """The attack of TRADES and its successors: in eval mode, p(x) anew in every step."""
    model.eval()
    adversarial = images.detach() + noise.normal(images, 0.001)
    for _ in range(STEPS):
        adversarial.requires_grad_()
        with torch.enable_grad():
            logits = model(adversarial)
            loss = _kl(logits, model(images)).sum() if kl else F.cross_entropy(logits, labels)
        gradient = torch.autograd.grad(loss, [adversarial])[0]
        adversarial = adversarial.detach() + STEP_SIZE * gradient.sign()
        adversarial = torch.min(torch.max(adversarial, images - EPSILON), images + EPSILON).clamp(0, 1)
    model.train()
    return adversarial.detach()


def trades(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, noise: Noise, log: Log
) -> None:
    """TRADES after Zhang et al. 2019, β = 6: the natural images are seen twice in the update."""
    adversarial = _eval_attack(model, images, labels, noise, kl=True)
    natural = model(images)
    loss = F.cross_entropy(natural, labels) + 6 * _kl(model(adversarial), model(images)).mean()
    _update(optimizer, loss, natural, labels, log)


def weat_adv(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, noise: Noise, log: Log
) -> None:
    """WEAT_ADV, β = 7."""
    adversarial = _eval_attack(model, images, labels, noise, kl=True)
    natural, logits = model(images), model(adversarial)
    weights = 1 / F.softplus(torch.logsumexp(natural, 1).abs()).detach()
    terms = F.cross_entropy(logits, labels, reduction="none") + 7 * _kl(logits, natural)
    _update(optimizer, (weights * terms).mean(), natural, labels, log)


def mail_trades(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, noise: Noise, log: Log
) -> None:
    """MAIL-TRADES after its burn-in, β = 5, slope 2, bias 0."""
    adversarial = _eval_attack(model, images, labels, noise, kl=True)
    natural, logits = model(images), model(adversarial)
    probabilities = F.softmax(logits, 1)
    own = probabilities.gather(1, labels[:, None])[:, 0]
    other = probabilities.scatter(1, labels[:, None], 0).max(1)[0]
    weights = 3 * torch.sigmoid(2 * (other - own)).detach()
    loss = F.cross_entropy(natural, labels) + 5 * (weights * _kl(logits, natural)).mean()
    _update(optimizer, loss, natural, labels, log)


def mart(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, noise: Noise, log: Log
) -> None:
    """MART after Wang et al. 2020, β = 5."""
    adversarial = _eval_attack(model, images, labels, noise, kl=False)
    natural, logits = model(images), model(adversarial)
    probabilities = F.softmax(logits, 1)
    other = probabilities.scatter(1, labels[:, None], 0).max(1)[0]
    boosted = F.cross_entropy(logits, labels) - torch.log(1.0001 - other + 1e-12).mean()
    doubt = 1.0000001 - F.softmax(natural, 1).gather(1, labels[:, None])[:, 0]
    _update(optimizer, boosted + 5 * (_kl(logits, natural) * doubt).mean(), natural, labels, log)


def grad_align(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, noise: Noise, log: Log
) -> None:
    """GradAlign after Andriushchenko & Flammarion 2020, λ = 0.2: the gradient at x is computed anew."""

    def gradient(at: Tensor, create_graph: bool) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(at), labels), at, create_graph=create_graph)[0]

    delta = torch.zeros_like(images, requires_grad=True)
    F.cross_entropy(model(images + delta), labels).backward()
    adversarial = (images + EPSILON * delta.grad.sign()).clamp(0, 1)
    first = gradient(images, False).flatten(1)
    second = gradient(images + noise.uniform(images, -EPSILON, EPSILON), True).flatten(1)
    logits = model(adversarial)
    loss = F.cross_entropy(logits, labels) + 0.2 * (1 - F.cosine_similarity(first, second, dim=1, eps=0).mean())
    _update(optimizer, loss, logits, labels, log)


STEP_OF: dict[str, Step] = {
    "fgsm_rs": _single_step(EPSILON, 1.25 * EPSILON, clip=True),
    "n_fgsm": _single_step(2 * EPSILON, EPSILON, clip=False),
    "grad_align": grad_align,
    "sat": sat,
    "trades": trades,
    "mart": mart,
    "mail_trades": mail_trades,
    "weat_adv": weat_adv,
}
