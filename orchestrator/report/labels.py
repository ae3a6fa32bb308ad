"""How methods, ε and fields are called in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.records.runs import Run
from trainers import catalog
from trainers.config import Experiment

_NAMES = {
    "fgsm": "FGSM",
    "fgsm_rs": "FGSM-RS",
    "n_fgsm": "N-FGSM",
    "sat": "SAT",
    "trades": "TRADES",
    "mart": "MART",
    "mail_at": "MAIL-AT",
    "mail_trades": "MAIL-TRADES",
    "weat_nat": "WEAT-NAT",
    "weat_adv": "WEAT-ADV",
    "sat_awp": "AT-AWP",
    "trades_awp": "TRADES-AWP",
    "grad_align": "GradAlign",
    "aaer": "AAER",
    "aaer_n": "N-AAER",
}


def method_label(experiment: Experiment) -> str:
    """For example `FGSM + DER`. It names what was run: a slot that differs from the preset's is spelled out."""
    method = experiment.method
    base = method.name.removesuffix("_der")
    preset = catalog.PRESETS[method.name]
    slots = ("inner", "outer", "weighting", "weight_perturbation")
    pairs = [(slot, getattr(method, slot), preset.slot(slot)) for slot in slots]
    named = [(slot, chosen and chosen.name, usual and usual["name"]) for slot, chosen, usual in pairs]
    changed = [f"{slot} {chosen or 'none'}" for slot, chosen, usual in named if chosen != usual]
    label = _NAMES.get(base, base) + (f" ({', '.join(changed)})" if changed else "")
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
