"""How methods, ε and fields are called in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.records.runs import Run
from trainers import catalog
from trainers.config import Experiment


@dataclass(frozen=True)
class Strengths:
    """What weighs the terms of a loss: β of the outer loss, β and γ of the regularizer; None where it has none."""

    beta: float | None
    der_beta: float | None
    gamma: float | None

    @property
    def betas_text(self) -> str:
        """Both β with three digits and a slash between, such as `7/0.1`."""
        return "/".join(f"{beta:.3g}" for beta in (self.beta, self.der_beta) if beta is not None)

    @property
    def gamma_text(self) -> str:
        """γ with three digits."""
        return "" if self.gamma is None else f"{self.gamma:.3g}"


def strengths(experiment: Experiment) -> Strengths:
    """Those of one experiment."""
    method = experiment.method
    parameters = method.regularizer.parameters if method.regularizer else {}
    return Strengths(method.beta, parameters.get("beta"), parameters.get("gamma"))


def method_label(experiment: Experiment) -> str:
    """For example `FGSM + DER`. It names what was run: a slot that differs from the preset's is spelled out."""
    method = experiment.method
    base = method.name.removesuffix("_der")
    preset = catalog.PRESETS[method.name]
    slots = ("inner", "outer", "weighting", "weight_perturbation")
    pairs = [(slot, getattr(method, slot), preset.slot(slot)) for slot in slots]
    named = [(slot, chosen and chosen.name, usual and usual["name"]) for slot, chosen, usual in pairs]
    changed = [f"{slot} {chosen or 'none'}" for slot, chosen, usual in named if chosen != usual]
    label = (preset.label or base) + (f" ({', '.join(changed)})" if changed else "")
    own = catalog.PRESETS[base].slot("regularizer") if base in catalog.PRESETS else None
    usual, chosen = own and own["name"], method.regularizer and method.regularizer.name
    if chosen == usual:
        return label
    return f"{label} + {chosen.upper()}" if chosen else f"{label} without {usual}"


def epsilon_text(experiment: Experiment) -> str:
    """The training ε as it was written; what a sampler drew, with all its digits, is cut to four."""
    epsilon = experiment.attack.epsilon
    return epsilon.text if "/" in epsilon.text or len(epsilon.text) <= 6 else f"{float(epsilon):.4g}"


def evaluation_epsilon(runs: Iterable[Run]) -> str:
    """The ε of the held-out attack as it was written (a study has one)."""
    return ", ".join(dict.fromkeys(run.experiment.evaluation.epsilon.text for run in runs))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each dotted path by its last two parts, or as many as tell it from the others: `regularizer.beta`."""
    unique = list(dict.fromkeys(paths))
    short = {}
    for path in unique:
        parts = path.split(".")
        endings = [".".join(parts[start:]) for start in reversed(range(max(len(parts) - 1, 1)))]
        others = [f".{other}" for other in unique if other != path]
        short[path] = next(
            (ending for ending in endings if not any(other.endswith(f".{ending}") for other in others)), path
        )
    return short
