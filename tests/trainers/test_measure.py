"""What is measured after an epoch and inside one; training must not notice either."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trainers import formulas
from trainers.attacks.attacker import Attacker
from trainers.attacks.fgsm import fgsm_rs
from trainers.attacks.linf import Adversarial
from trainers.attacks.pgd import pgd
from trainers.data.batches import TrainingBatches
from trainers.data.images import load_splits
from trainers.diagnostics.iteration_checks import IterationChecks
from trainers.diagnostics.measure import EpochMeasurement, respond
from trainers.loop import fit
from trainers.models.autocast import Autocast
from trainers.models.build import build_model
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step


def test_natural_logits_are_computed_once_for_both_attacks_on_the_probe(experiment, splits, alone):
    settings = experiment({"method.name": "sat", "attack.steps": 2})
    model, forwards = build_model(settings), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    EpochMeasurement(settings, splits, alone)(model)
    held_out, probe = 1 + (10 + 1), 1 + (2 + 1) + (10 + 1)
    assert len(forwards) == held_out + probe


def test_an_attack_that_is_the_reference_is_not_run_twice(experiment, splits, alone):
    settings = experiment({"method.name": "sat", "attack.epsilon": "8/255", "attack.step_size": "2/255"})
    model, forwards = build_model(settings), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    metrics = EpochMeasurement(settings, splits, alone)(model)
    held_out, probe = 1 + (10 + 1), 1 + (10 + 1)
    assert len(forwards) == held_out + probe
    assert metrics["probe/adversarial_accuracy"] == metrics["probe_reference/pgd10_accuracy"]
    assert metrics["probe/delta_energy/mean"] == metrics["probe_reference/delta_energy/mean"]


@pytest.mark.parametrize("method", [{"method.name": "fgsm"}, {"method.name": "trades", "attack.steps": 3}])
def test_measurements_on_the_probe_agree_among_themselves(method, experiment, splits, alone):
    settings = experiment({"attack.epsilon": 0.3} | method)
    metrics = EpochMeasurement(settings, splits, alone)(build_model(settings))
    for split in ("probe", "probe_reference"):
        joint, marginal = (metrics[f"{split}/kl_{part}_part/mean"] for part in ("joint", "marginal"))
        assert marginal == pytest.approx(metrics[f"{split}/delta_energy/mean"], abs=1e-6)
        assert joint + marginal > 0
        # CE = E(x, y) − E(x), so the rise of the loss is the difference of the two deltas.
        natural, adversarial = (metrics[f"{split}/{side}_loss/mean"] for side in ("natural", "adversarial"))
        energies = metrics[f"{split}/natural_joint_energy/mean"] - metrics[f"{split}/natural_energy/mean"]
        assert natural == pytest.approx(energies, abs=1e-5)
        deltas = metrics[f"{split}/delta_joint_energy/mean"] - metrics[f"{split}/delta_energy/mean"]
        assert natural - adversarial == pytest.approx(deltas, abs=1e-5)
        assert metrics[f"{split}/abnormal_fraction"] == metrics[f"{split}/abnormal_count"] / 64
    assert metrics["probe/clean_accuracy"] == metrics["probe_reference/clean_accuracy"]
    assert metrics["probe/delta_energy/mean"] != metrics["probe_reference/delta_energy/mean"]


def even_stride(images, count):
    """Images and labels at equal distances, the first and the last among them."""
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    return images.select(chosen)


def answers(model, images, attack, epsilon, step_size, steps, batch_size=1000):
    """Logits at the images, at the starts and where an attack ends; each batch with the noise that is always its."""
    seen = []
    for batch, first in enumerate(range(0, len(images), batch_size)):
        pixels = images.floats(first, first + batch_size)
        found = attack(
            model, pixels, images.labels[first : first + batch_size], epsilon=epsilon, step_size=step_size, steps=steps,
            batch_norm="eval", noise=Noise(generator("cpu", 0, "monitor", batch)),
        )  # fmt: skip
        with torch.no_grad():
            seen.append(torch.stack([model(points) for points in (pixels, found.start_images, found.images)]))
    return torch.cat(seen, dim=1)


class Wavy(torch.nn.Sequential):
    """A network whose loss an attack lowers now and then: one step leads across a wave."""

    def forward(self, images):
        return 3 * super().forward(images).sin()


def test_what_is_recorded_is_what_the_net_answers(experiment, splits, alone, natural_net):
    values = {"method.name": "fgsm_rs", "attack.epsilon": 0.3, "evaluation.epsilon": 0.1, "evaluation.batch_size": 40}
    wavy = Wavy(natural_net)
    metrics = EpochMeasurement(experiment(values), splits, alone)(copy.deepcopy(wavy).train())
    probe = even_stride(splits.train, 64)
    for split, images, attack, name in (
        ("val", splits.validation, (pgd, 0.1, 0.025, 10), "pgd10_accuracy"),
        ("probe", probe, (fgsm_rs, 0.3, 0.375, 1), "adversarial_accuracy"),
        ("probe_reference", probe, (pgd, 0.3, 0.075, 10), "pgd10_accuracy"),
    ):
        y = images.labels
        z, start, z_adv = answers(wavy, images, *attack, batch_size=40)
        easier, fall = formulas.ce(start, y) > formulas.ce(z_adv, y), formulas.lse(z_adv) - formulas.lse(z)
        expected = {
            "clean_accuracy": (z.argmax(1) == y).double(),
            name: (z_adv.argmax(1) == y).double(),
            "natural_loss/mean": formulas.ce(z, y),
            "adversarial_loss/mean": formulas.ce(z_adv, y),
            "delta_energy/mean": fall,
            "abnormal_fraction": easier.double(),
            "high_energy_abnormal_count/rise": len(y) * (easier & (fall < -1)).double(),
        } | ({} if split == "val" else {"kl_joint_part/mean": formulas.kl(z, z_adv) - fall})
        found = {quantity: metrics[f"{split}/{quantity}"] for quantity in expected}
        assert found == pytest.approx({quantity: float(each.mean()) for quantity, each in expected.items()}, rel=1e-4)
    assert metrics["probe/high_energy_abnormal_count/rise"] > 0


def test_attacks_search_in_bfloat16_and_float32_judges(splits, alone, natural_net):
    """An attack that is given away: it only says what it was answered, and moves every pixel by a known amount."""
    answers = []

    def shift(model, images, labels, *, epsilon, noise, **_):
        answers.append(model(images).detach())
        start = (images + 0.5 * epsilon).clamp(0, 1)
        return Adversarial((images + epsilon).clamp(0, 1), start, model(start), torch.zeros_like(images))

    attacker = Attacker(shift, 0.1, 0.1, 1, "eval")
    (seen,) = respond(natural_net, splits.validation, [attacker], 256, alone, "bfloat16")
    pixels = splits.validation.floats()
    with torch.no_grad():
        judged = [natural_net((pixels + moved).clamp(0, 1)) for moved in (0, 0.05, 0.1)]
    for ours, expected in zip((seen.natural, seen.start, seen.adversarial), judged, strict=True):
        torch.testing.assert_close(ours, expected)  # to some 1e-5; bfloat16 would differ by 1e-2
    torch.testing.assert_close(torch.cat(answers), Autocast(natural_net)(pixels).detach())
    assert (torch.cat(answers) - seen.natural).abs().max() > 1e-3


def test_what_bfloat16_finds_is_nearly_what_float32_finds(experiment, splits, alone, natural_net):
    exact, searched = (
        EpochMeasurement(experiment({"precision": precision}), splits, alone)(natural_net)
        for precision in ("float32", "bfloat16")
    )
    natural = [name for name in exact if "clean" in name or "natural" in name]
    assert {name: searched[name] for name in natural} == {name: exact[name] for name in natural}
    assert searched["val/pgd10_accuracy"] == pytest.approx(exact["val/pgd10_accuracy"], abs=0.03)
    assert searched["probe/delta_energy/mean"] != exact["probe/delta_energy/mean"]
    assert searched["probe/delta_energy/mean"] == pytest.approx(exact["probe/delta_energy/mean"], rel=0.05)


def test_chance_is_the_share_of_the_most_frequent_class(experiment, splits, alone):
    ones = np.flatnonzero(splits.validation.labels == 1)[:5]
    rest = np.flatnonzero(splits.validation.labels != 1)[:11]
    uneven = replace(splits, validation=splits.validation.select(np.r_[ones, rest]))
    metrics = EpochMeasurement(experiment(), uneven, alone)(build_model(experiment()))
    assert metrics["val/chance_accuracy"] == 5 / 16


@pytest.fixture
def checked(experiment):
    return experiment({"method.name": "fgsm_rs", "evaluation.check_every": 2})


def train_one_epoch(settings, splits, ranks, checks=None):
    """Weights, buffers and flags after an epoch of four steps with one layer frozen in eval mode."""
    batches = TrainingBatches(splits.train, settings, ranks)
    model = build_model(settings).train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    method = build_method(settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    noise = Noise(generator("cpu", 0, "attack", 0), *batches.rows)
    for step, (images, labels, _) in enumerate(batches.epoch(0)):
        train_step(model, method, optimizer, images, labels, noise, epoch_fraction=0.0)
        if checks is not None:
            checks.after_step(model, step)
    assert not frozen.training
    return model.state_dict(), [module.training for module in model.modules()], model


def test_checks_leave_training_bit_identical(checked, splits, alone):
    random_state = torch.get_rng_state()
    checks = IterationChecks(checked, splits, alone)
    state, flags, _ = train_one_epoch(checked, splits, alone, checks)
    without, flags_without, _ = train_one_epoch(checked, splits, alone)
    assert len(checks.metrics()) == 4
    assert flags == flags_without
    assert all(torch.equal(state[name], without[name]) for name in without)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_checks_come_every_so_many_steps_and_see_the_model_of_the_moment(checked, splits, alone):
    checks = IterationChecks(checked, splits, alone)
    _, _, model = train_one_epoch(checked, splits, alone, checks)
    first = checks.metrics()
    assert set(first) == {
        f"check/{step}/{name}" for step in ("0002", "0004") for name in ("pgd5_accuracy", "delta_energy/mean")
    }
    assert first["check/0002/delta_energy/mean"] != first["check/0004/delta_energy/mean"]
    assert checks.metrics() == {}
    checks.after_step(model, 3)  # the model that the epoch ended with, the same images and noise
    again = checks.metrics()
    assert again == {name: value for name, value in first.items() if "0004" in name}


def test_a_check_is_a_fixed_attack_on_fixed_training_images(checked, splits, alone, natural_net):
    strong = checked.model_copy(update={"attack": checked.attack.model_copy(update={"epsilon": 0.5})})
    seen, forwards = [], []
    counting = natural_net.register_forward_hook(lambda *_: forwards.append(1))
    for settings in (checked, strong):
        checks = IterationChecks(settings, splits, alone)
        checks.after_step(natural_net, 1)
        seen.append(checks.metrics())
    counting.remove()
    assert len(forwards) == 2 * (1 + 5 + 1)
    weak, broken = (metrics["check/0002/pgd5_accuracy"] for metrics in seen)
    assert broken < 0.1 < weak
    assert weak * 64 == pytest.approx(round(weak * 64))


def test_a_check_sees_128_images_and_tells_accuracy_and_the_fall_of_energy(experiment, splits, alone, natural_net):
    settings = experiment(
        {"attack.epsilon": 0.2, "evaluation": {"check_every": 1, "probe_samples": 200, "epsilon": 0.1}}
    )
    checks = IterationChecks(settings, splits, alone)
    checks.after_step(natural_net, 0)
    seen = checks.metrics()
    images = even_stride(even_stride(splits.train, 200), 128)
    z, _, z_adv = answers(natural_net, images, pgd, 0.2, 0.05, 5)
    accuracy = (z_adv.argmax(1) == images.labels).double().mean()
    assert seen["check/0001/pgd5_accuracy"] == pytest.approx(float(accuracy))
    fall = (formulas.lse(z_adv) - formulas.lse(z)).mean()
    assert seen["check/0001/delta_energy/mean"] == pytest.approx(float(fall), rel=1e-4)


def test_checks_are_part_of_the_epochs_record_and_change_nothing_else(checked, experiment, splits, alone, tmp_path):
    plain = experiment({"method.name": "fgsm_rs"})
    with_checks, without = (
        [record.metrics for record in fit(settings, tmp_path / name, ranks=alone, splits=splits)]
        for name, settings in (("checked", checked), ("plain", plain))
    )
    for ours, theirs in zip(with_checks, without, strict=True):
        timeless = {name: value for name, value in theirs.items() if "second" not in name}
        assert {name: ours[name] for name in timeless} == timeless
        assert {name for name in ours if name not in theirs} == {
            f"check/{step}/{name}" for step in ("0002", "0004") for name in ("pgd5_accuracy", "delta_energy/mean")
        }


@pytest.mark.parametrize(
    "values", [{}, {"optimizer.batch_size": 100}, {"optimizer.batch_size": 999}, {"data.train_samples": None}]
)
def test_the_steps_that_a_setting_is_held_against_are_those_of_an_epoch(values, experiment, alone):
    settings = experiment(values)
    assert settings.steps_per_epoch == len(TrainingBatches(load_splits(settings.data).train, settings, alone))


def test_without_the_setting_nothing_is_checked(experiment, splits, alone, natural_net):
    checks = IterationChecks(experiment(), splits, alone)
    for step in range(4):
        checks.after_step(natural_net, step)
    assert checks.metrics() == {}
