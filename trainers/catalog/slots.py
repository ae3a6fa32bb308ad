"""The slots of a method and what fills them: inner attack, outer loss, weighting, regularizer, weight perturbation."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.catalog.entries import Entry, Inner, Outer, Parameter

_NATURAL = frozenset({"natural_logits"})
_BETA = {"beta": Parameter(6.0, "strength of the KL term", low=0.0)}


def _start(about: str = "fraction of the epochs before it acts") -> Parameter:
    return Parameter(0.0, about, low=0.0, high=1.0)


INNER: dict[str, Inner] = {
    "fgsm": Inner(
        "trainers.attacks.fgsm:fgsm",
        "one step from the image",
        "Goodfellow et al. 2015, arXiv 1412.6572",
        single_step=True,
        starts_at_image=True,
    ),
    "fgsm_rs": Inner(
        "trainers.attacks.fgsm:fgsm_rs",
        "one step of 1.25 ε from a uniform start",
        "Wong et al. 2020, arXiv 2001.03994",
        relative_step_size=1.25,
        single_step=True,
    ),
    "n_fgsm": Inner(
        "trainers.attacks.fgsm:n_fgsm",
        "one step of ε from uniform noise of k ε, not projected to the ε-ball",
        "de Jorge et al. 2022, arXiv 2202.01181",
        parameters={"noise_scale": Parameter(2.0, "k: half-width of the noise in units of epsilon", low=0.0)},
        single_step=True,
    ),
    "pgd": Inner(
        "trainers.attacks.pgd:pgd",
        "cross-entropy",
        "Madry et al. 2018, arXiv 1706.06083",
        parameters={
            "start": Parameter(
                "uniform", "uniform in the ε-ball, or the image + 0.001 N(0,1)", choices=("uniform", "gaussian")
            )
        },
        relative_step_size=0.25,
    ),
    "pgd_kl": Inner(
        "trainers.attacks.pgd:pgd_kl",
        "KL to the natural prediction, Gaussian start of 0.001",
        "Zhang et al. 2019, arXiv 1901.08573",
        relative_step_size=0.25,
        passes=1,
    ),
    "pgd_margin": Inner(
        "trainers.attacks.pgd:pgd_margin",
        "CW∞: the margin of the logits, uniform start",
        "Carlini & Wagner 2017, arXiv 1608.04644",
        parameters={"kappa": Parameter(50.0, "how far below the best wrong logit the true one is pushed", low=0.0)},
        relative_step_size=0.25,
    ),
    "pgd_targeted": Inner(
        "trainers.attacks.pgd:pgd_targeted",
        "cross-entropy towards a wrong class, uniform start",
        "Kurakin et al. 2017, arXiv 1611.01236",
        parameters={
            "target": Parameter(
                "random",
                "the wrong class: any, or the least likely at the start",
                choices=("random", "least_likely"),
            )
        },
        relative_step_size=0.25,
    ),
}

OUTER: dict[str, Outer] = {
    "ce_adv": Outer("trainers.methods.outer:ce_adv", "CE(x*)", "Madry et al. 2018, arXiv 1706.06083, eq. 2.1"),
    "bce_adv": Outer(
        "trainers.methods.outer:bce_adv",
        "BCE(x*): CE(x*) − log(1 − best wrong probability)",
        "MART, Wang et al. 2020, ICLR 2020",
    ),
    "ce_nat_kl": Outer(
        "trainers.methods.outer:ce_nat_kl",
        "CE(x) + β KL(p(x) || p(x*))",
        "Zhang et al. 2019, arXiv 1901.08573, eq. 5",
        parameters=_BETA,
        needs=_NATURAL,
        divergence=True,
    ),
    "ce_adv_kl": Outer(
        "trainers.methods.outer:ce_adv_kl",
        "CE(x*) + β KL(p(x) || p(x*))",
        "WEAT, arXiv 2407.06315",
        parameters=_BETA,
        needs=_NATURAL,
        divergence=True,
    ),
    "bce_adv_kl": Outer(
        "trainers.methods.outer:bce_adv_kl",
        "BCE(x*) + β KL(p(x) || p(x*))",
        "MART, Wang et al. 2020, ICLR 2020",
        parameters=_BETA,
        needs=_NATURAL,
        divergence=True,
    ),
}

WEIGHTED = ("all", "divergence", "classification")


def _applies_to(default: str) -> Parameter:
    return Parameter(default, "the terms that are weighted: all, the KL alone, or all but the KL", choices=WEIGHTED)


WEIGHTING: dict[str, Entry] = {
    "energy": Entry(
        "trainers.methods.weighting:energy",
        "1 / softplus(|E(x)|), detached",
        "WEAT, arXiv 2407.06315",
        needs=_NATURAL,
        placement={"applies_to": _applies_to("all"), "start": _start()},
    ),
    "margin": Entry(
        "trainers.methods.weighting:margin",
        "sigmoid(s (PM + b)) of the probabilistic margin PM at x*, detached",
        "MAIL, Wang et al. 2021, arXiv 2106.07904",
        parameters={
            "slope": Parameter(10.0, "s: how sharply the weight rises with the margin", low=0.0),
            "bias": Parameter(-0.5, "b: shifts where it rises"),
            "normalize": Parameter(
                "x3", "x3: times 3, as the published code; mean1: mean of the batch is 1; none",
                choices=("x3", "mean1", "none"),
            ),
        },
        placement={
            "applies_to": _applies_to("all"),
            "start": _start("burn-in: fraction of the epochs with equal weights"),
        },
    ),
    "misclassification": Entry(
        "trainers.methods.weighting:misclassification",
        "1 − p_y(x), with gradient",
        "MART, Wang et al. 2020, ICLR 2020",
        needs=_NATURAL,
        placement={"applies_to": _applies_to("divergence"), "start": _start()},
    ),
}  # fmt: skip

REGULARIZER: dict[str, Entry] = {
    "der": Entry(
        "trainers.methods.regularizers:der",
        "β/B Σ over S of max(ΔE(x)² + ΔE(x,y)² − γ, 0)",
        "DER, arXiv 2505.22486",
        parameters={
            "beta": Parameter(100.0, "strength; multi-step methods default to 0.25", low=0.0),
            "gamma": Parameter(0.1, "what is free of charge, in squared energy", low=0.0),
            "samples": Parameter(
                "abnormal",
                "S: abnormal adversarial examples, or all (default of multi-step methods)",
                choices=("abnormal", "all"),
            ),
            "reference": Parameter(
                "start",
                "an example is abnormal if the attack lowered the loss against its start, or the natural image",
                choices=("start", "natural"),
                only_with={"samples": "abnormal"},
            ),
            "divide_by": Parameter(
                "batch",
                "divide the sum by the batch or by |S|",
                choices=("batch", "samples"),
                only_with={"samples": "abnormal"},
            ),
            "detach_natural": Parameter(False, "no gradient through E(x); diverges at a large beta"),
        },
        needs=_NATURAL,
        needs_if={"start_logits": {"samples": "abnormal", "reference": "start"}},
        placement={
            "start": _start(
                "fraction of the epochs before it acts; multi-step methods: the first learning-rate drop or 0.75"
            )
        },
    ),
    "aaer": Entry(
        "trainers.methods.regularizers:aaer",
        "λ1 |A|/B (λ2 mean loss drop over A + λ3 max(V_A − V_N, 0)) over abnormal examples A, normal ones N",
        "AAER, Lin et al. 2023, arXiv 2404.08154",
        parameters={
            "strength": Parameter(1.0, "λ1: strength of the whole term, which grows with the abnormal share", low=0.0),
            "loss_strength": Parameter(2.5, "λ2: strength of the mean drop of the loss", low=0.0),
            "variation_strength": Parameter(1.5, "λ3: strength of the excess variation of the logits", low=0.0),
            "loss_gradient": Parameter(
                False, "let the loss at x* in the λ2 term carry gradient; the published code detaches it"
            ),
        },
        needs=frozenset({"start_logits"}),
        placement={"start": _start()},
    ),
    "grad_align": Entry(
        "trainers.methods.regularizers:grad_align",
        "λ (1 − mean cosine between the input gradients at x and at x + U(−ε, ε))",
        "Andriushchenko & Flammarion 2020, arXiv 2007.02617",
        parameters={
            "strength": Parameter(
                0.2, "λ; default 0.02 · 10^(255 ε / 8), on svhn 1.5625 · 1.6^(255 ε / 8), ε up to 16/255", low=0.0
            )
        },
        needs=frozenset({"natural_gradient", "noisy_gradient"}),
        placement={"start": _start()},
        passes=5,
    ),
}

WEIGHT_PERTURBATION: dict[str, Entry] = {
    "awp": Entry(
        "trainers.methods.weight_perturbation:awp",
        "the loss is taken where the weights of each layer moved by γ of their norm against it",
        "Wu et al. 2020, arXiv 2004.05884",
        parameters={"gamma": Parameter(0.01, "size of the perturbation relative to each layer's norm", low=0.0)},
        placement={"start": _start()},
    ),
}

# By their field in `method`. The optional ones may be empty.
OPTIONAL_SLOTS: dict[str, Mapping[str, Entry]] = {
    "weighting": WEIGHTING,
    "regularizer": REGULARIZER,
    "weight_perturbation": WEIGHT_PERTURBATION,
}
SLOTS: dict[str, Mapping[str, Entry]] = {"inner": INNER, "outer": OUTER, **OPTIONAL_SLOTS}


def sees_attack_as_update(batch_norm: str, *, perturbed: bool) -> bool:
    """Whether logits and gradients at an attack's start are the update's: in its batch-norm mode, of its weights."""
    return batch_norm == "train" and not perturbed
