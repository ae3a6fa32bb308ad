"""A compiled network computes what it computed before, attacks without weight gradients, and may fail to compile."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from trainers import catalog
from trainers.loop import fit
from trainers.models.autocast import Autocast
from trainers.models.build import build_model
from trainers.models.compiled import Compiled
from trainers.problems import InvalidInput
from trainers.randomness import Noise, generator
from trainers.step import build_method, train_step

# With DER only two: it adds a term of the logits.
COMPILABLE = ["fgsm_der", "trades_der", *(name for name in catalog.PRESETS if not name.endswith(("_der", "_align")))]


@pytest.fixture
def backend(monkeypatch):
    """`backend(name or function)`: what torch.compile does with the graphs that it captures."""
    torch._dynamo.reset()
    compiler = torch.compile
    yield lambda chosen: monkeypatch.setattr(torch, "compile", partial(compiler, backend=chosen))
    torch._dynamo.reset()


def updated(settings, digits, wrapped=lambda model: model):
    """Weights and statistics after two updates in float64, the network called as `wrapped`."""
    torch.manual_seed(0)
    model = build_model(settings).double().train()
    called, method = wrapped(model), build_method(settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    noise = Noise(generator("cpu", 0, "attack"))
    for step in range(2):
        rows = slice(16 * step, 16 * step + 16)
        train_step(called, method, optimizer, digits[0][rows].double(), digits[1][rows], noise, epoch_fraction=0.9)
    return model.state_dict()


@pytest.mark.parametrize("name", COMPILABLE)
def test_every_method_updates_the_weights_as_it_does_uncompiled(name, experiment, digits, backend):
    """Graphs are captured and differentiated as for the real compiler, then run operation by operation."""
    backend("aot_eager")
    steps = {} if experiment({"method.name": name}).attack.steps == 1 else {"attack.steps": 2}
    settings = experiment({"method.name": name, "model.width": 4, **steps})
    made = []
    found = updated(settings, digits, lambda model: made.append(Compiled(model)) or made[-1])
    assert made[0].is_compiled
    for key, value in updated(settings, digits).items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)


def test_the_attack_computes_no_gradient_of_a_weight_and_the_update_all_of_them(experiment, digits, backend):
    gradients = []

    def recorded(graph, _):
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        gradients.append(sum(output is not None for output in outputs))
        return make_boxed_func(graph.forward)

    backend(aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=recorded))
    settings = experiment({"method.name": "sat", "attack.steps": 3})
    updated(settings, digits, Compiled)
    assert sorted(gradients) == [1, len(list(build_model(settings).parameters()))]


def test_an_attack_in_eval_mode_keeps_no_large_mask_on_a_cpu(experiment, digits, backend):
    """In bfloat16 they would cost more than the convolutions."""
    kept = []

    def recorded(graph, _):
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        kept.append([output.meta["val"] for output in outputs])
        return make_boxed_func(graph.forward)

    backend(
        aot_autograd(
            fw_compiler=recorded,
            bw_compiler=lambda graph, _: make_boxed_func(graph.forward),
            decompositions=select_decomp_table(),
            partition_fn=min_cut_rematerialization_partition,
        )
    )
    model = Compiled(Autocast(build_model(experiment({"model.width": 4})))).eval()
    model(digits[0][:16].clone().requires_grad_()).sum().backward()
    assert model.is_compiled
    assert len(kept) == 1
    masks = [value for value in kept[0] if value.dtype == torch.bool]
    assert max((mask[0].numel() for mask in masks), default=0) <= 16 * 2 * 2  # of the last layer, not 4 x 8 x 8


def test_where_nothing_can_be_compiled_training_goes_on_and_says_so(experiment, splits, alone, tmp_path, backend):
    def broken(graph, inputs):
        raise FileNotFoundError("no C++ compiler")

    backend(broken)
    settings = {"method.name": "fgsm_rs", "epochs": 1}
    with pytest.warns(UserWarning, match="uncompiled.*no C\\+\\+ compiler") as warned:
        (record,) = fit(experiment({**settings, "compile": True}), tmp_path / "0", ranks=alone, splits=splits)
    assert len([one for one in warned if "uncompiled" in str(one.message)]) == 1
    (plain,) = fit(experiment(settings), tmp_path / "1", ranks=alone, splits=splits)
    assert record.metrics["train/compiled"] == 0
    assert "train/compiled" not in plain.metrics
    assert record.metrics["train/loss"] == plain.metrics["train/loss"]


def test_so_it_is_where_only_the_backward_can_not_be_compiled(experiment, splits, alone, tmp_path, backend):
    """A GPU's compiler may fail at a kernel of the backward alone."""

    def broken(graph, inputs):
        raise RuntimeError("no such kernel")

    backend(aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=broken))
    settings = {"method.name": "fgsm_rs", "epochs": 1}
    with pytest.warns(UserWarning, match="uncompiled"):
        (record,) = fit(experiment({**settings, "compile": True}), tmp_path / "0", ranks=alone, splits=splits)
    (plain,) = fit(experiment(settings), tmp_path / "1", ranks=alone, splits=splits)
    assert (record.metrics["train/compiled"], record.metrics["train/loss"]) == (0, plain.metrics["train/loss"])


def test_the_runs_before_in_a_process_do_not_keep_one_from_being_compiled(experiment, digits, backend):
    """PyTorch compiles a piece of code eight times, for whatever networks; a slot of a study trains many."""
    compiled = []

    def counted(graph, _):
        compiled.append(graph)
        return make_boxed_func(graph.forward)

    backend(aot_autograd(fw_compiler=counted))
    for width in range(2, 6):
        settings = experiment({"method.name": "trades", "attack.steps": 2, "model.width": width})
        before, made = len(compiled), []
        updated(settings, digits, lambda model: made.append(Compiled(model)) or made[-1])  # noqa: B023
        assert made[0].is_compiled
        # Natural logits of the attack, the attack, the update.
        assert len(compiled) - before >= 3


def test_where_one_run_has_too_many_variants_it_goes_on_and_says_so(experiment, digits, backend):
    backend("eager")
    compiled = Compiled(build_model(experiment()))
    for rows in range(2, 10):
        compiled(digits[0][:rows])
    assert compiled.is_compiled
    with pytest.warns(UserWarning, match="uncompiled"):
        compiled(digits[0][:10])
    assert not compiled.is_compiled


def test_a_run_can_be_compiled_in_earnest(experiment, splits, alone, tmp_path):
    """By the compiler that users have; its kernels may add in another order."""
    settings = {"method.name": "sat", "attack.steps": 2, "epochs": 1, "data.train_samples": 64}
    (record,) = fit(experiment({**settings, "compile": True}), tmp_path / "0", ranks=alone, splits=splits)
    (plain,) = fit(experiment(settings), tmp_path / "1", ranks=alone, splits=splits)
    assert record.metrics["train/compiled"] == 1
    assert record.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], rel=1e-3)


def test_what_is_differentiated_twice_is_refused(experiment):
    with pytest.raises(InvalidInput, match="compile: true: grad_align differentiates twice"):
        experiment({"method.name": "grad_align", "compile": True})


def test_compiling_changes_rounding_and_with_it_the_run(experiment):
    assert experiment({"compile": True}).digest() != experiment().digest()
