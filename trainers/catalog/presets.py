"""The published methods: rows over the slots."""

from __future__ import annotations

from dataclasses import replace

from trainers.catalog.entries import Preset

_BASE_PRESETS: dict[str, Preset] = {
    "fgsm": Preset("fgsm", "ce_adv", 1, "train", "Goodfellow et al. 2015, arXiv 1412.6572",
                   "single step, no random start: collapses at a large ε"),
    "fgsm_rs": Preset("fgsm_rs", "ce_adv", 1, "train", "Wong et al. 2020, arXiv 2001.03994",
                      "single step from a random start"),
    "sat": Preset("pgd", "ce_adv", 10, "train", "Madry et al. 2018; Rice et al. 2020, arXiv 2002.11569",
                  "standard adversarial training on PGD examples"),
    "trades": Preset("pgd_kl", "ce_nat_kl", 10, "eval", "Zhang et al. 2019, arXiv 1901.08573",
                     "natural accuracy against KL robustness", beta=6.0),
    "weat_nat": Preset("pgd_kl", "ce_nat_kl", 10, "eval", "WEAT, arXiv 2407.06315",
                       "TRADES weighted by energy", beta=6.0, weighting="energy"),
    "weat_adv": Preset("pgd_kl", "ce_adv_kl", 10, "eval", "WEAT, arXiv 2407.06315",
                       "CE on adversarial examples + KL, weighted by energy", beta=7.0, weighting="energy"),
}  # fmt: skip

PRESETS: dict[str, Preset] = _BASE_PRESETS | {
    f"{name}_der": replace(
        preset, regularizer="der", about=f"{name} with the Delta Energy Regularizer",
        source=f"DER, arXiv 2505.22486; {preset.source}",
    )
    for name, preset in _BASE_PRESETS.items()
}  # fmt: skip
