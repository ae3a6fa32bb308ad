"""The slots of a method and what fills them: inner attack, outer loss, weighting, regularizer."""

from __future__ import annotations

from trainers.catalog.entries import Entry, Inner, Parameter

INNER: dict[str, Inner] = {
    "fgsm": Inner(
        "trainers.attacks.fgsm:fgsm",
        "one step from the image",
        "Goodfellow et al. 2015, arXiv 1412.6572",
        relative_step_size=1.0,
        single_step=True,
    ),
    "fgsm_rs": Inner(
        "trainers.attacks.fgsm:fgsm_rs",
        "one step of 1.25 ε from a uniform start",
        "Wong et al. 2020, arXiv 2001.03994",
        relative_step_size=1.25,
        single_step=True,
    ),
    "pgd": Inner(
        "trainers.attacks.pgd:pgd",
        "cross-entropy, uniform start",
        "Madry et al. 2018, arXiv 1706.06083",
        relative_step_size=0.25,
    ),
    "pgd_kl": Inner(
        "trainers.attacks.pgd:pgd_kl",
        "KL to the natural prediction, Gaussian start of 0.001",
        "Zhang et al. 2019, arXiv 1901.08573",
        relative_step_size=0.25,
        passes=1,
    ),
}

_NATURAL = frozenset({"natural_logits"})

OUTER: dict[str, Entry] = {
    "ce_adv": Entry("trainers.methods.outer:ce_adv", "CE(x*)", "Madry et al. 2018, arXiv 1706.06083, eq. 2.1"),
    "ce_nat_kl": Entry(
        "trainers.methods.outer:ce_nat_kl",
        "CE(x) + β KL(p(x) || p(x*))",
        "Zhang et al. 2019, arXiv 1901.08573, eq. 5",
        parameters={"beta": Parameter(6.0, "strength of the KL term", low=0.0)},
        needs=_NATURAL,
    ),
    "ce_adv_kl": Entry(
        "trainers.methods.outer:ce_adv_kl",
        "CE(x*) + β KL(p(x) || p(x*))",
        "WEAT, arXiv 2407.06315",
        parameters={"beta": Parameter(6.0, "strength of the KL term", low=0.0)},
        needs=_NATURAL,
    ),
}

WEIGHTING: dict[str, Entry] = {
    "energy": Entry(
        "trainers.methods.weighting:energy_weight",
        "1 / softplus(|E(x)|), detached",
        "WEAT, arXiv 2407.06315",
        needs=_NATURAL,
    ),
}

REGULARIZER: dict[str, Entry] = {
    "der": Entry(
        "trainers.methods.regularizers:der",
        "β · mean over S of max(ΔE(x)² + ΔE(x,y)² − γ, 0)",
        "DER, arXiv 2505.22486",
        parameters={
            "beta": Parameter(100.0, "strength; multi-step methods default to 0.25", low=0.0),
            "gamma": Parameter(0.1, "what is free of charge, in squared energy", low=0.0),
            "samples": Parameter(
                "abnormal",
                "S: abnormal adversarial examples, or all (default of multi-step methods)",
                choices=("abnormal", "all"),
            ),
            "start": Parameter(
                0.0,
                "fraction of the epochs before it acts; multi-step methods: the first learning-rate drop or 0.75",
                low=0.0,
                high=1.0,
            ),
            "reference": Parameter(
                "start",
                "an example is abnormal if the attack lowered the loss against its start, or the natural image",
                choices=("start", "natural"),
            ),
            "divide_by": Parameter("batch", "divide the sum by the batch or by |S|", choices=("batch", "samples")),
            "detach_natural": Parameter(False, "no gradient through E(x); diverges at a large beta"),
        },
        needs=frozenset({"natural_logits", "start_logits"}),
    ),
}


def training_passes(inner: str, outer: str, weighting: str | None, regularizer: str | None, steps: int) -> int:
    """Passes per training image: attack, then forward and full backward of x*, and of x where a slot needs it."""
    attack = INNER[inner]
    chosen = [OUTER[outer]]
    chosen += [WEIGHTING[weighting]] if weighting else []
    chosen += [REGULARIZER[regularizer]] if regularizer else []
    natural = any("natural_logits" in entry.needs for entry in chosen)
    return 2 * steps + attack.passes + 3 + 3 * natural
