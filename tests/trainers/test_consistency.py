"""Each sign of gradient masking is seen where the flags show it, and an honest model shows none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from trainers.catalog.attacks import stages
from trainers.evaluation.consistency import ConsistencyRule, inconsistencies, with_warnings
from trainers.evaluation.ranges import evaluate_range, fixed_subset
from trainers.evaluation.result import EvaluationResult, Flags, ForeignModel, Protocol

PROTOCOL = Protocol("digits", "test", 1000, "0.05", "-", seed=0, shard=1000, batch_size=500, checkpoint="best")


def evaluation(attack, *standing, images=1000, **fields):
    """Of `images` images, how many stand clean and after each stage."""
    names = ("clean", *stages(attack))
    flags = {name: (True,) * count + (False,) * (images - count) for name, count in zip(names, standing, strict=True)}
    protocol = replace(PROTOCOL, attack=attack, **fields)
    return EvaluationResult(protocol, "abc", 7, Flags(0, images, flags))


@pytest.mark.parametrize(
    ("attack", "standing", "sign"),
    [
        ("pgd20,autoattack", (900, 600, 520, 499, 499, 499), "pgd20 leaves 10.10 points more than the worst case"),
        ("autoattack", (900, 600, 500, 500, 500), "apgd-ce leaves 10.00 points more"),
        ("pgd20,cw", (900, 700, 500), "pgd20 leaves 20.00 points more"),
        ("autoattack", (900, 520, 500, 499, 496), "square, without gradients, takes 0.30 points from what apgd-ce"),
        ("cw,square", (900, 520, 510), "square, without gradients, takes 1.00 points from what cw left"),
        ("pgd50-10,pgd20", (900, 520, 516), "pgd20 takes 0.40 points from what the stronger pgd50-10 left"),
        (
            "autoattack,pgd50-10",
            (900, 500, 480, 480, 480, 470),
            "pgd50-10 takes 1.00 points from what the stronger auto",
        ),
    ],
)
def test_a_sign_in_one_evaluation_is_told(attack, standing, sign):
    (warning,) = inconsistencies([evaluation(attack, *standing)])
    assert warning.startswith(sign)
    assert with_warnings(evaluation(attack, *standing)).warnings == (warning,)


@pytest.mark.parametrize(
    ("attack", "standing"),
    [
        ("clean", (900,)),
        ("pgd20", (900, 0)),
        ("pgd20,autoattack", (900, 580, 560, 500, 500, 500)),
        ("autoattack", (900, 520, 500, 500, 498)),
        ("square,pgd20", (900, 700, 500)),
        ("pgd20,pgd50-10", (900, 560, 500)),
        ("pgd50-10,pgd20", (900, 520, 517)),
        ("cw,apgd-t", (900, 700, 500)),
    ],
)
def test_what_is_usual_or_cannot_be_seen_is_not_told(attack, standing):
    assert inconsistencies([evaluation(attack, *standing)]) == ()


def test_one_image_is_no_sign():
    assert inconsistencies([evaluation("pgd20,square", 12, 10, 9, images=16)]) == ()
    assert len(inconsistencies([evaluation("pgd20,square", 12, 10, 8, images=16)], ConsistencyRule(gap=0.5))) == 1


@pytest.mark.parametrize(("gap", "told"), [(172, 0), (173, 1)])
def test_a_gap_must_exceed_its_threshold_by_its_standard_error(gap, told):
    # 8 % of 2,000 images and sqrt(g (1 - g) / n): 172.5 images.
    found = evaluation("pgd20,cw", 1800, 1400 + gap, 1400, images=2000)
    assert len(inconsistencies([found])) == told


def test_thresholds_are_those_of_the_rule():
    found = evaluation("pgd20,square", 900, 560, 556)
    assert len(inconsistencies([found])) == 1
    assert inconsistencies([found], ConsistencyRule(square=0.004)) == ()
    assert len(inconsistencies([found], ConsistencyRule(gap=0.003, square=0.004, deviations=0))) == 1


def test_several_evaluations_of_a_model_compare_attacks_that_each_came_first():
    weak, strong = evaluation("pgd20", 900, 520), evaluation("pgd50-10", 900, 524)
    assert inconsistencies([weak, strong]) == ("pgd50-10 leaves 0.40 points more than the weaker pgd20",)
    assert inconsistencies([weak, evaluation("pgd50-10", 900, 523)]) == ()
    automatic = evaluation("autoattack", 900, 480, 430, 430, 430)
    assert inconsistencies([automatic, weak])[0].startswith("pgd20 leaves 9.00 points more than the worst case of auto")
    best = evaluation("autoattack", 900, 540, 530, 530, 530)
    assert "autoattack leaves 1.00 points more than the weaker pgd20" in inconsistencies([best, weak])


def test_the_gap_is_that_of_the_attack_on_the_cross_entropy_that_leaves_most():
    found = [evaluation("pgd50-10", 900, 520), evaluation("pgd20", 900, 600), evaluation("cw", 900, 500)]
    (warning,) = inconsistencies(found)
    assert warning.startswith("pgd20 leaves 10.00 points more than the worst case of cw")


@pytest.mark.parametrize("other", [evaluation("cw", 9, 5, epsilon="0.1"), replace(evaluation("cw", 9, 5), epoch=8)])
def test_different_models_or_settings_are_not_compared(other):
    with pytest.raises(ValueError, match="of one model"):
        inconsistencies([evaluation("pgd20", 900, 500), other])


def test_weights_of_others_that_know_nothing_may_be_for_another_network():
    foreign = ForeignModel("small stem_stride=1", "0" * 64)
    (warning,) = inconsistencies([replace(evaluation("pgd20", 160, 100), foreign=foreign)])
    assert warning.startswith("the clean accuracy is only 16.0 % (chance: 10.0 %)")
    assert "--model-option" in warning
    assert inconsistencies([replace(evaluation("pgd20", 200, 160), foreign=foreign)]) == ()
    assert inconsistencies([evaluation("pgd20", 160, 100)]) == ()


def test_saturated_logits_are_found_out_and_the_same_net_without_is_cleared(natural_net, splits):
    class Saturated(nn.Module):
        """The same decisions, but the softmax is one in float32, and its gradient zero."""

        def forward(self, images):
            return 1e4 * natural_net(images)

    images = fixed_subset(splits.test, 100)
    protocol = replace(PROTOCOL, attack="pgd20,cw", samples=100, epsilon="0.07")
    found = {}
    for name, model in (("honest", natural_net), ("masked", Saturated())):
        flags = evaluate_range(model, images, protocol, 0, 100)
        found[name] = with_warnings(EvaluationResult(protocol, None, None, flags))
    assert found["honest"].accuracies["clean"] == found["masked"].accuracies["clean"]
    assert found["masked"].accuracies["pgd20"] > found["honest"].accuracies["pgd20"] + 0.1
    assert found["honest"].warnings == ()
    assert ["gradient of the cross-entropy may be masked" in warning for warning in found["masked"].warnings] == [True]
