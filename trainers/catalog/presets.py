"""The published methods: rows over the slots."""

from __future__ import annotations

from dataclasses import replace

from trainers.catalog.entries import Preset

_MAIL_BURN_IN = 76 / 120
_GAUSSIAN_PGD = {"name": "pgd", "start": "gaussian"}

_BASE_PRESETS: dict[str, Preset] = {
    "fgsm": Preset("fgsm", "ce_adv", 1, "train", "Goodfellow et al. 2015, arXiv 1412.6572",
                   "single step, no random start: collapses at a large ε", label="FGSM"),
    "fgsm_rs": Preset("fgsm_rs", "ce_adv", 1, "train", "Wong et al. 2020, arXiv 2001.03994",
                      "single step from a random start", label="FGSM-RS"),
    "n_fgsm": Preset("n_fgsm", "ce_adv", 1, "train", "de Jorge et al. 2022, arXiv 2202.01181",
                     "single step from strong noise, not projected", label="N-FGSM"),
    "sat": Preset("pgd", "ce_adv", 10, "train", "Madry et al. 2018; Rice et al. 2020, arXiv 2002.11569",
                  "standard adversarial training on PGD examples", label="SAT"),
    "trades": Preset("pgd_kl", "ce_nat_kl", 10, "eval", "Zhang et al. 2019, arXiv 1901.08573",
                     "natural accuracy against KL robustness", beta=6.0, label="TRADES"),
    "mart": Preset(_GAUSSIAN_PGD, "bce_adv_kl", 10, "eval", "MART, Wang et al. 2020, ICLR 2020",
                   "misclassified images count more in the KL", beta=5.0, weighting="misclassification", label="MART"),
    "mail_at": Preset(_GAUSSIAN_PGD, "ce_adv", 10, "eval", "MAIL, Wang et al. 2021, arXiv 2106.07904",
                      "adversarial training weighted by margin",
                      weighting={"name": "margin", "start": _MAIL_BURN_IN}, label="MAIL-AT"),
    "mail_trades": Preset("pgd_kl", "ce_nat_kl", 10, "eval", "MAIL, Wang et al. 2021, arXiv 2106.07904",
                          "TRADES whose KL is weighted by margin", beta=5.0,
                          weighting={"name": "margin", "slope": 2.0, "bias": 0.0, "applies_to": "divergence",
                                     "start": _MAIL_BURN_IN}, label="MAIL-TRADES"),
    "weat_nat": Preset("pgd_kl", "ce_nat_kl", 10, "eval", "WEAT, arXiv 2407.06315",
                       "TRADES weighted by energy", beta=6.0, weighting="energy", label="WEAT-NAT"),
    "weat_adv": Preset("pgd_kl", "ce_adv_kl", 10, "eval", "WEAT, arXiv 2407.06315",
                       "CE on adversarial examples + KL, weighted by energy", beta=7.0, weighting="energy",
                       label="WEAT-ADV"),
    "sat_awp": Preset("pgd", "ce_adv", 10, "train", "Wu et al. 2020, arXiv 2004.05884",
                      "adversarial training with adversarial weights", weight_perturbation="awp", label="AT-AWP"),
    "trades_awp": Preset("pgd_kl", "ce_nat_kl", 10, "eval", "Wu et al. 2020, arXiv 2004.05884",
                         "TRADES with adversarial weights", beta=6.0,
                         weight_perturbation={"name": "awp", "gamma": 0.005, "start": 10 / 200}, label="TRADES-AWP"),
}  # fmt: skip

_REGULARIZED: dict[str, Preset] = {
    "grad_align": Preset("fgsm", "ce_adv", 1, "train", "Andriushchenko & Flammarion 2020, arXiv 2007.02617",
                         "single step with aligned input gradients", regularizer="grad_align", label="GradAlign"),
    "aaer": Preset("fgsm_rs", "ce_adv", 1, "train", "AAER, Lin et al. 2023, arXiv 2404.08154",
                   "FGSM-RS without abnormal adversarial examples", regularizer="aaer", label="AAER"),
    "aaer_n": Preset("n_fgsm", "ce_adv", 1, "train", "AAER, Lin et al. 2023, arXiv 2404.08154",
                     "N-FGSM without abnormal adversarial examples", regularizer="aaer", label="N-AAER"),
}  # fmt: skip

PRESETS: dict[str, Preset] = {
    **_BASE_PRESETS,
    **_REGULARIZED,
    **{
        f"{name}_der": replace(
            preset, regularizer="der", about=f"{name} with the Delta Energy Regularizer",
            source=f"DER, arXiv 2505.22486; {preset.source}",
        )
        for name, preset in _BASE_PRESETS.items()
    },
}  # fmt: skip
