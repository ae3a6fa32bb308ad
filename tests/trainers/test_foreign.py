"""Weights that others saved: every usual container, the public layer names, and refusals that say what is wrong."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from trainers import catalog
from trainers.foreign.known import known_model
from trainers.foreign.layouts import LAYOUTS
from trainers.foreign.weights import read_weights, weights_digest
from trainers.problems import InvalidInput

CIFAR = catalog.DATASETS["cifar10"]
WIDTH = 8


# The public layouts, with the names that their checkpoints have.


class PublicPreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        activated = F.relu(self.bn1(x))
        shortcut = self.shortcut(activated) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


class PublicBasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Public(nn.Module):
    """conv1 (bn1), layer1 to layer4 of two blocks each, (bn), linear."""

    def __init__(self, block, *, final_norm=True):
        super().__init__()
        self.pre_activation = block is PublicPreActBlock
        self.conv1 = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
        if not self.pre_activation:
            self.bn1 = nn.BatchNorm2d(WIDTH)
        inputs = WIDTH
        for stage in range(1, 5):
            outputs = WIDTH * 2 ** (stage - 1)
            blocks = [block(inputs, outputs, 1 if stage == 1 else 2), block(outputs, outputs, 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = outputs
        if self.pre_activation and final_norm:
            self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, 10)

    def forward(self, x):
        out = self.conv1(x)
        if not self.pre_activation:
            out = F.relu(self.bn1(out))
        for stage in range(1, 5):
            out = getattr(self, f"layer{stage}")(out)
        if hasattr(self, "bn"):
            out = F.relu(self.bn(out))
        return self.linear(out.mean((2, 3)))


class PublicWideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


class PublicStage(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class PublicWide(nn.Module):
    """WRN-16-1 with the first stage twice, one of them unused."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = PublicStage(PublicWideBlock(16, 16, 1), PublicWideBlock(16, 16, 1))
        self.sub_block1 = PublicStage(PublicWideBlock(16, 16, 1), PublicWideBlock(16, 16, 1))
        self.block2 = PublicStage(PublicWideBlock(16, 32, 2), PublicWideBlock(32, 32, 1))
        self.block3 = PublicStage(PublicWideBlock(32, 64, 2), PublicWideBlock(64, 64, 1))
        self.bn1 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(out)).mean((2, 3)))


class NormalizedPublic(nn.Module):
    """Preprocessing inside, as the model zoos have it."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.register_buffer("mu", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor(std).view(1, 3, 1, 1))
        self.model = model

    def forward(self, x):
        return self.model((x - self.mu) / self.sigma)


def public(name, **switches):
    """A net of the public layout with every tensor at random, statistics of batch norm included, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = {"preact_resnet18": PublicPreActBlock, "resnet18": PublicBasicBlock}
        model = (Public(blocks[name], **switches) if name in blocks else PublicWide()).eval()
        for tensor_name, tensor in model.state_dict().items():
            if "bn" in tensor_name or "shortcut.1" in tensor_name:
                tensor.copy_(torch.rand_like(tensor.float()) + 0.5)
    return model


def options(name, **changes):
    small = {"depth": 16, "widen_factor": 1} if name.startswith("wide") else {"width": WIDTH}
    return {key: row.default for key, row in catalog.MODELS[name].parameters.items()} | small | changes


def load(file, name="preact_resnet18", normalization="none", dataset=CIFAR, **changes):
    return known_model(file, name, options(name, **changes), dataset, normalization)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# Names


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_public_checkpoint_answers_as_its_own_code_does(name, suffix, pixels, tmp_path):
    model, file = public(name), tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), file)
    else:
        save_file(model.state_dict(), file)  # safetensors sorts the names: nothing may depend on their order
    loaded = load(file, name)
    assert not loaded.training
    assert torch.allclose(loaded(pixels), model(pixels), atol=1e-5)


def test_switches_of_the_architecture_are_those_of_the_checkpoint(pixels, tmp_path):
    model = public("preact_resnet18", final_norm=False)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert torch.allclose(load(tmp_path / "weights.pt", final_norm=False)(pixels), model(pixels), atol=1e-5)


def test_our_own_weights_keep_their_names(pixels, tmp_path):
    model = load_ours()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert torch.equal(load(tmp_path / "weights.pt")(pixels), model(pixels))


def load_ours():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return catalog.MODELS["preact_resnet18"].load()(10, 3, **options("preact_resnet18")).eval()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 76, "optimizer": {"state": {}}},
        lambda state: {"model_state_dict": state, "best": 0.5},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module.backbone.{name}": tensor for name, tensor in state.items()},
        lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
        lambda state: state | {"sub_block1.layer.0.conv1.weight": torch.zeros(1)},
    ],
    ids=["plain", "state_dict", "model_state_dict", "model and module", "compiled", "attribute", "uncounted", "unused"],
)
def test_containers_and_prefixes_do_not_matter(wrap, pixels, tmp_path):
    model = public("preact_resnet18")
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pt")
    assert torch.allclose(load(tmp_path / "weights.pt")(pixels), model(pixels), atol=1e-5)


# Files that are refused


class Malicious:
    """Would write a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


def save_as_pickle(content, file):
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_as_pickle])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(save, tmp_path):
    target, file = tmp_path / "ran", tmp_path / "weights.pt"
    save({"state_dict": {}, "epoch": Malicious(target)}, file)
    with pytest.raises(InvalidInput, match=r"refused: it holds more than tensors and would run \S*exec"):
        read_weights(file)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))
    assert target.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.pt", b"no weights at all", "can't be read as weights"),
        ("weights.pt", b"", "can't be read as weights"),
        ("weights.pt", pickle.dumps([1], protocol=0), r"can't be read as weights \(Unsupported operand 108\)"),
        ("weights.safetensors", b"no weights at all", "is not a safetensors file"),
        ("weights.pt", [1, 2], "holds a list, not a state dict"),
        ("weights.pt", {"epoch": 3, "accuracy": 0.5}, "it has only 'epoch', 'accuracy'"),
        ("weights.pt", {"model": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}}, "which one is meant"),
        ("weights.pt", {}, "only nothing"),
        ("other.pt", None, "is not a file"),
    ],
)
def test_files_without_weights_are_named(name, content, message, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(InvalidInput, match=message):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16}, r"of another shape: conv1.weight \[8, 3, 3, 3\] instead of \[16, 3, 3, 3\].*width=16"),
        ({"blocks_per_stage": 3}, r"missing: .*blocks_per_stage=3"),
        ({"blocks_per_stage": 1}, r"unexpected: "),
        ({"final_norm": False}, r"unexpected: bn.weight, bn.bias, bn.running_mean, ….*final_norm=False"),
        ({"name": "resnet18"}, r"does not fit resnet18: .*of another shape"),
        ({"name": "small", "width": 16}, r"does not fit small: .*unexpected: conv1.weight"),
        ({"dataset": catalog.DATASETS["digits"]}, r"conv1.weight \[8, 3, 3, 3\] instead of \[8, 1, 3, 3\].*--data"),
    ],
)
def test_weights_that_do_not_fit_say_where(changes, message, tmp_path):
    torch.save(public("preact_resnet18").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InvalidInput, match=message):
        load(tmp_path / "weights.pt", **changes)


def test_a_name_without_translation_is_not_guessed(tmp_path):
    state = public("preact_resnet18").state_dict()
    state["layer1.0.attention.weight"] = state.pop("layer1.0.conv1.weight")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(InvalidInput, match=r"1 missing: 1\.conv1\.weight; 1 unexpected: layer1\.0\.attention\.weight"):
        load(tmp_path / "weights.pt")


# Normalization


@pytest.mark.parametrize(
    ("normalization", "mean", "std"),
    [
        ("standard", CIFAR.mean, CIFAR.std),
        ("half", (0.5,) * 3, (0.5,) * 3),
        ("none", (0.0,) * 3, (1.0,) * 3),
        ("checkpoint", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ],
)
def test_normalization_is_what_was_stated(normalization, mean, std, pixels, tmp_path):
    bare = public("preact_resnet18")
    model = NormalizedPublic(bare, mean, std)
    torch.save(model.state_dict(), tmp_path / "with.pt")
    torch.save(bare.state_dict(), tmp_path / "without.pt")
    assert torch.allclose(load(tmp_path / "with.pt", normalization=normalization)(pixels), model(pixels), atol=1e-4)
    if normalization != "checkpoint":
        loaded = load(tmp_path / "without.pt", normalization=normalization)
        assert torch.allclose(loaded(pixels), model(pixels), atol=1e-4)


@pytest.mark.parametrize(
    ("buffers", "normalization", "message"),
    [
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "none", "holds mean 0.5000 .*take those with checkpoint"),
        ({"mean": [0.5] * 3, "std": [0.2] * 3}, "half", "deviation 0.5000 0.5000 0.5000, but .*deviation 0.2000"),
        ({"mean": [0.5] * 3}, "half", "not one mean and one deviation for each channel"),
        ({"mean": [0.5], "std": [0.5]}, "half", "not one mean and one deviation for each channel"),
        ({}, "checkpoint", "holds no mean and deviation"),
    ],
)
def test_statistics_in_the_file_are_never_overruled_in_silence(buffers, normalization, message, tmp_path):
    state = public("preact_resnet18").state_dict()
    state |= {f"normalize.{name}": torch.tensor(values) for name, values in buffers.items()}
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(InvalidInput, match=message):
        load(tmp_path / "weights.pt", normalization=normalization)


def test_the_digest_is_that_of_the_tensors_whatever_the_file(pixels, tmp_path):
    model = public("preact_resnet18")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.pt")
    save_file(model.state_dict(), tmp_path / "b.safetensors")
    digests = [weights_digest(load(tmp_path / name)) for name in ("a.pt", "b.safetensors")]
    assert digests[0] == digests[1]
    assert weights_digest(load(tmp_path / "a.pt", normalization="half")) != digests[0]
    changed = load(tmp_path / "a.pt")
    with torch.no_grad():
        next(changed.parameters()).flatten()[0] += 1e-6
    assert weights_digest(changed) != digests[0]
