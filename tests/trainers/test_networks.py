"""What is trained and what is kept: the moving average, bfloat16, the warm-up of ε."""

from __future__ import annotations

import operator

import pytest
import torch

from benchmarks.counting import HostSyncs
from trainers import catalog, checkpoint
from trainers.attacks.attacker import training_attack
from trainers.attacks.pgd import pgd_kl
from trainers.data.batches import TrainingBatches
from trainers.diagnostics.iteration_checks import IterationChecks
from trainers.evaluation.searching import for_fast_search
from trainers.loop import fit
from trainers.models.autocast import Autocast
from trainers.models.build import build_model
from trainers.models.normalize import Normalized
from trainers.models.stem import Stem
from trainers.networks import Networks
from trainers.precision import tf32
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step


def test_the_average_is_that_of_the_recursion_over_the_weights_after_each_step(experiment, splits, alone, tmp_path):
    """θ̄ ← d θ̄ + (1 − d) θ from the weights after the first step on, batch-norm statistics included; here by hand."""
    settings = experiment(
        {"method.name": "fgsm_rs", "optimizer.ema_decay": 0.9, "epochs": 1, "schedule": "constant", "seed": 3}
    )
    list(fit(settings, tmp_path, ranks=alone, splits=splits))
    kept = checkpoint.latest(tmp_path).weights()

    model = build_model(settings).to(memory_format=torch.channels_last).train()
    average = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = TrainingBatches(splits.train, settings, alone)
    noise = Noise(generator("cpu", 3, "attack", 0), *batches.rows)
    for images, labels, _ in batches.epoch(0):
        train_step(model, build_method(settings), optimizer, images, labels, noise, epoch_fraction=0.0)
        now = {name: value.clone() for name, value in model.state_dict().items()}
        average = now if not average else {n: 0.9 * average[n] + 0.1 * now[n] for n in now}
    trained = checkpoint.latest(tmp_path).training_state()["trained"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)
        if value.is_floating_point():
            torch.testing.assert_close(kept[name], average[name], rtol=1e-4, atol=1e-5)
            assert not torch.equal(kept[name], trained[name])


def test_what_is_measured_is_the_average(experiment, splits, alone, tmp_path):
    settings = experiment({"optimizer.ema_decay": 0.999, "epochs": 1, "evaluation.check_every": 4})
    (record,) = fit(settings, tmp_path, ranks=alone, splits=splits)
    model = checkpoint.latest(tmp_path).load_model()
    with torch.no_grad():
        predicted = model(splits.validation.floats()).argmax(1)
    assert record.metrics["val/clean_accuracy"] == pytest.approx(
        float((predicted == splits.validation.labels).float().mean())
    )
    checks = IterationChecks(settings, splits, alone)
    checks.after_step(model, 3)  # the epoch has four steps
    seen = checks.metrics()
    assert {name: record.metrics[name] for name in seen} == pytest.approx(seen, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_step_sees_the_trained_net_in_its_precision_and_without_an_average_that_is_measured(
    precision, experiment, digits, alone
):
    networks = Networks(experiment({"precision": precision}), alone)
    networks.parallel.eval()
    same = torch.equal(networks.parallel(digits[0][:8]), networks.trained(digits[0][:8]))
    assert same == (precision == "float32")
    assert networks.evaluated is networks.trained


def test_bfloat16_is_close_to_float32_and_keeps_weights_and_logits_in_float32(experiment, digits):
    settings = experiment({"model.width": 8})
    model = build_model(settings).train()
    lowered = Autocast(model)
    exact, rounded = model(digits[0][:32]), lowered(digits[0][:32])
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    rounded.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", catalog.MODELS)
def test_bfloat16_does_not_round_the_pixels(name, experiment, digits):
    """Every step of an attack is seen: what the first layer makes of an image is the same in either precision."""
    size = {"depth": 10, "widen_factor": 1} if name.startswith("wide") else {"width": 2}
    model = build_model(experiment({"model": {"name": name, **size}})).train()
    (stem,) = (module for module in model.modules() if isinstance(module, Stem))
    assert stem is next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    seen = []
    stem.register_forward_hook(lambda *call: seen.append(call[-1]))
    model(digits[0][:4])
    Autocast(model)(digits[0][:4])
    assert torch.equal(*seen)
    assert seen[1].dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", catalog.MODELS)
def test_bfloat16_does_not_round_the_logits(name, training, experiment, digits):
    """Energies and losses, which are compared and thresholded, are as exact as the features that they come from."""
    size = {"depth": 10, "widen_factor": 1} if name.startswith("wide") else {"width": 2}
    model = build_model(experiment({"model": {"name": name, **size}})).train(training)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    seen = []
    for lowered in (Autocast(model), for_fast_search(model)):
        head = [module for module in lowered.modules() if isinstance(module, torch.nn.Linear)][-1]
        head.register_forward_hook(lambda _module, inputs, logits: seen.append((inputs[0], logits)))
        logits = lowered(digits[0][:16])
        features, from_head = seen[-1]
        assert features.dtype == torch.bfloat16
        assert torch.equal(logits, from_head)
        assert torch.equal(logits, torch.nn.functional.linear(features.float(), last.weight, last.bias))


def test_in_bfloat16_the_first_gradient_of_the_kl_is_there(experiment, digits):
    """At x + 0.001 N(0,1) rounded logits are now and then those at x: the divergence had no gradient at all there."""
    model = build_model(experiment({"model": {"name": "preact_resnet18", "width": 16}}))
    images, labels = digits[0][:128], digits[1][:128]
    noise = Noise(generator("cpu", 0, "attack"))
    attacked = pgd_kl(
        Autocast(model), images, labels, epsilon=0.1, step_size=0.025, steps=1, batch_norm="eval", noise=noise
    )
    assert (attacked.start_gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", ["trades", "weat_adv", "sat_awp"])
def test_in_bfloat16_every_weight_still_gets_its_gradient(name, experiment, splits, alone):
    """Casts that an attack made under no_grad must not stand in for those of the update."""
    settings = experiment({"method.name": name, "attack.steps": 2, "precision": "bfloat16"})
    networks, images, labels = Networks(settings, alone), splits.train.floats(0, 32), splits.train.labels[:32]
    optimizer = torch.optim.SGD(networks.trained.parameters(), lr=0.0)
    noise = Noise(generator("cpu", 0, "attack"))
    networks.parallel.train()
    train_step(networks.parallel, build_method(settings), optimizer, images, labels, noise, epoch_fraction=1.0)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in networks.trained.parameters())


def test_the_average_follows_without_a_wait_for_the_device(experiment, alone):
    networks = Networks(experiment({"optimizer.ema_decay": 0.9}), alone)
    with HostSyncs() as syncs:
        for _ in range(2):
            networks.after_step()
    assert syncs.seen == []


def test_the_average_follows_weights_that_are_loaded_and_lists_them_in_no_step(experiment, alone, monkeypatch):
    networks = Networks(experiment({"optimizer.ema_decay": 0.75}), alone)
    for value in (1.0, 5.0):
        networks.trained.load_state_dict(
            {name: torch.full_like(tensor, value) for name, tensor in networks.trained.state_dict().items()}
        )
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Module, "state_dict", None)
            networks.after_step()
    assert all((tensor == 2).all() for tensor in networks.evaluated.state_dict().values())


def test_what_a_network_counts_is_copied_into_the_average(experiment, alone, monkeypatch):
    monkeypatch.setattr("trainers.models.small.BatchNorm2d", torch.nn.BatchNorm2d)
    networks = Networks(experiment({"optimizer.ema_decay": 0.5}), alone)
    networks.after_step()
    networks.trained.train()(torch.rand(4, 1, 8, 8))
    networks.after_step()
    kept, trained = networks.evaluated.state_dict(), networks.trained.state_dict()
    counts = [name for name in kept if name.endswith("num_batches_tracked")]
    assert counts
    assert all(kept[name] == trained[name] == 1 for name in counts)


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_float32_is_float32_where_attacks_search_and_always_where_logits_are_recorded(
    precision, allowed, experiment, splits, alone, tmp_path, monkeypatch
):
    """TF32 is no more than a flag of PyTorch here; on GPUs that have it the flag decides."""
    seen = {"training": set(), "searching": set(), "judging": set()}

    def observed(model, images):
        kind = "training" if model.training else "searching" if images.requires_grad else "judging"
        seen[kind].add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return forward(model, images)

    forward = Normalized.forward
    monkeypatch.setattr(Normalized, "forward", observed)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    list(fit(experiment({"precision": precision, "epochs": 1}), tmp_path, ranks=alone, splits=splits))
    assert seen == {"training": {(allowed,) * 2}, "searching": {(allowed,) * 2}, "judging": {(False, False)}}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.parametrize("setting", ["", "cudnn", "cudnn.conv", "cuda.matmul"])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_code_of_the_user_may_have_set_precisions_as_pytorch_now_advises(setting, precision):
    finer = operator.attrgetter("cudnn.conv", "cudnn.rnn", "cuda.matmul")
    chosen = operator.attrgetter(setting)(torch.backends) if setting else torch.backends
    before, was = [one.fp32_precision for one in finer(torch.backends)], chosen.fp32_precision
    chosen.fp32_precision = precision
    try:
        held = [one.fp32_precision for one in finer(torch.backends)]
        for allowed in (False, True):
            with tf32(allowed=allowed):
                assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (allowed, allowed)
        left = [one.fp32_precision for one in finer(torch.backends)]
        assert [one == "tf32" for one in left] == [one == "tf32" for one in held]
    finally:
        chosen.fp32_precision = was
        for one, value in zip(finer(torch.backends), before, strict=True):
            one.fp32_precision = value


def test_the_training_epsilon_warms_up_from_zero(experiment, splits, alone, tmp_path, monkeypatch):
    settings = experiment({"method.name": "fgsm_rs", "attack.warmup_epochs": 2, "epochs": 3})
    records = list(fit(settings, tmp_path, ranks=alone, splits=splits))
    norms = [record.metrics["train/perturbation_norm/mean"] for record in records]
    # 4 steps an epoch at 0, 1/8, … of ε: means 3/16 and 11/16, then all of it.
    assert norms[0] / norms[2] == pytest.approx(3 / 16, rel=0.15)
    assert norms[1] / norms[2] == pytest.approx(11 / 16, rel=0.15)


def test_a_scaled_attack_is_the_attack_at_the_scaled_epsilon(experiment, natural_net, digits):
    whole, half = (experiment({"method.name": "sat", "attack.epsilon": eps}) for eps in (0.2, 0.1))
    crafted = [
        training_attack(settings, batch_norm="eval")(
            natural_net, digits[0][:16], digits[1][:16], Noise(generator("cpu", 0, "attack")), scale
        ).images
        for settings, scale in ((whole, 0.5), (half, 1.0))
    ]
    torch.testing.assert_close(*crafted)
