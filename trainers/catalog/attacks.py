"""The attacks of a final evaluation, alone by name or several as a list."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.problems import InvalidInput, unknown_name


@dataclass(frozen=True)
class EvaluationAttack:
    """One stage of an evaluation. `label` is how papers write it, `passes` its cost for an image that withstands it."""

    label: str
    about: str
    source: str
    passes: int


STAGES: dict[str, EvaluationAttack] = {
    "pgd20": EvaluationAttack(
        "PGD-20", "20 steps of ε/4 on the cross-entropy, uniform start, final iterate",
        "Madry et al. 2018, arXiv 1706.06083", passes=40,
    ),
    "pgd50-10": EvaluationAttack(
        "PGD-50-10", "50 steps of ε/4 on the cross-entropy, 10 uniform starts, the worst for each image",
        "Wong et al. 2020, arXiv 2001.03994", passes=1000,
    ),
    "cw": EvaluationAttack(
        "CW∞", "20 steps of ε/4 on the margin of the logits with κ = 50, uniform start, final iterate",
        "Carlini & Wagner 2017, arXiv 1608.04644", passes=40,
    ),
    "margin-t": EvaluationAttack(
        "Margin-T", "20 steps of ε/4 on the margin to each of the 3 likeliest wrong classes, uniform starts",
        "Carlini & Wagner 2017, arXiv 1608.04644, targeted; a short cut to APGD-T's order of models", passes=120,
    ),
    "pgd20-t": EvaluationAttack(
        "PGD-20-T", "20 steps of ε/4 towards a wrong class drawn at random, uniform start, final iterate",
        "Kurakin et al. 2017, arXiv 1611.01236", passes=40,
    ),
    "kl20": EvaluationAttack(
        "KL-PGD-20", "20 steps of ε/4 on KL(p(x) || p(x*)) from x + 0.001·N(0,1), final iterate",
        "Zhang et al. 2019, arXiv 1901.08573", passes=41,
    ),
    "apgd-ce": EvaluationAttack(
        "APGD-CE", "AutoAttack's: 100 steps of adaptive size on the cross-entropy",
        "Croce & Hein 2020, arXiv 2003.01690", passes=200,
    ),
    "apgd-dlr": EvaluationAttack(
        "APGD-DLR", "100 steps of adaptive size on the difference of logits ratio; no stage of AutoAttack standard",
        "Croce & Hein 2020, arXiv 2003.01690", passes=200,
    ),
    "apgd-t": EvaluationAttack(
        "APGD-T", "AutoAttack's: APGD on the targeted DLR, towards each of the 9 likeliest wrong classes",
        "Croce & Hein 2020, arXiv 2003.01690", passes=1800,
    ),
    "fab-t": EvaluationAttack(
        "FAB-T", "AutoAttack's: 100 steps to the nearest point of each of the 9 likeliest wrong classes",
        "Croce & Hein 2020, arXiv 1907.02044", passes=2700,
    ),
    "square": EvaluationAttack(
        "Square", "AutoAttack's: random search with squares, 5,000 queries, no gradient",
        "Andriushchenko et al. 2020, arXiv 1912.00049", passes=5000,
    ),
}  # fmt: skip
AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "clean": (),
    "autoattack": AUTOATTACK,
    "worst": ("pgd20", "pgd50-10", "cw", *AUTOATTACK),
}
ATTACK_NAMES = (*COMBINATIONS, *STAGES)


def stages(attack: str) -> tuple[str, ...]:
    """The stages behind a name or a comma list such as `pgd20,cw,autoattack`, in order.

    Each stage attacks only what stands after the one before, so the last number is the worst case over all of them.
    Raises InvalidInput for an unknown name, a stage that comes twice, and `clean` in a list.
    """
    names = [name.strip() for name in attack.split(",")]
    found: list[str] = []
    for name in names:
        if name not in ATTACK_NAMES:
            raise InvalidInput.single("attack", unknown_name(name, ATTACK_NAMES, "attack"))
        if name == "clean" and len(names) > 1:
            raise InvalidInput.single("attack", f"{attack!r}: the clean accuracy always comes first, leave clean out")
        found += COMBINATIONS.get(name, (name,))
    twice = sorted({stage for stage in found if found.count(stage) > 1})
    if twice:
        raise InvalidInput.single("attack", f"{attack!r}: {', '.join(twice)} would run twice")
    return tuple(found)


def needs_gradients(attack: str) -> bool:
    """Whether a stage behind a name or a list follows the gradient at the images: all but Square do."""
    return any(stage != "square" for stage in stages(attack))


def canonical(attack: str) -> str:
    """One spelling for each sequence of stages, so that equal evaluations have equal protocol keys."""
    return ",".join(stages(attack)).replace(",".join(AUTOATTACK), "autoattack") or "clean"


def attack_label(attack: str) -> str:
    """A name or a list as papers write it: `PGD-20 + CW∞ + AutoAttack`."""
    labels = {"clean": "no attack", "autoattack": "AutoAttack"} | {name: row.label for name, row in STAGES.items()}
    return " + ".join(labels[name] for name in canonical(attack).split(","))


def evaluation_passes(attack: str) -> int:
    """About how many passes of one image an evaluation takes, when half of the images withstand the first stage."""
    first, *rest = (STAGES[stage].passes for stage in stages(attack)) if stages(attack) else (0,)
    return 1 + first + sum(rest) // 2
