"""Models of the user's own code: run with consent only, loaded strictly, and named when they fail."""

from __future__ import annotations

import pytest
import torch

from trainers.foreign.factory import factory_architecture, factory_model
from trainers.problems import InvalidInput

CODE = """
import torch
from beside import SCALE
from torch import nn

def factory():
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(SCALE > 0)

def needs(width):
    return nn.Linear(width, 10)

def number():
    return 3

def fails():
    raise KeyError("no such layer")

something = 3
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "beside.py").write_text("SCALE = 1\n")
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "net.py"


def test_a_factory_gives_a_model_with_its_own_weights_or_with_those_of_a_file(code, tmp_path):
    state = torch.get_rng_state()
    own = factory_model(f"{code}:factory", None, allow_code=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert not own.training
    weights = {f"module.{name}": tensor + 1 for name, tensor in own.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "weights.pt")
    loaded = factory_model(f"{code}:factory", tmp_path / "weights.pt", allow_code=True)
    assert torch.equal(loaded[1].weight, own[1].weight + 1)
    torch.save({"1.weight": own[1].weight}, tmp_path / "half.pt")
    with pytest.raises(InvalidInput, match=r"does not fit .*:factory: [^!]*Missing key.*1\.bias"):
        factory_model(f"{code}:factory", tmp_path / "half.pt", allow_code=True)


def test_code_is_executed_only_when_that_is_allowed(tmp_path):
    (tmp_path / "net.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef factory(): pass\n")
    with pytest.raises(InvalidInput, match=r"would execute the Python code in .*net\.py: add --allow-code"):
        factory_model(f"{tmp_path / 'net.py'}:factory", None, allow_code=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{}:factroy", "defines no function factroy"),
        ("{}:something", "defines no function something"),
        ("{}:number", r"number\(\) of .* returns int, not an nn.Module"),
        ("{}:needs", "failed with TypeError: .*width"),
        ("{}:fails", "failed with KeyError: 'no such layer'"),
        ("{}", "expected path/to/file.py:factory"),
        ("{}:1", "expected path/to/file.py:factory"),
        ("nowhere.py:factory", "'nowhere.py' is not a file"),
    ],
)
def test_a_factory_that_is_none_is_named(reference, message, code):
    with pytest.raises(InvalidInput, match=f"--model: .*{message}"):
        factory_model(reference.format(code), None, allow_code=True)


# Who a model is


def test_code_that_changed_is_another_architecture(code):
    before = factory_architecture(f"{code}:factory")
    assert before.startswith("net.py:factory ")
    code.write_text(CODE + "# changed\n")
    assert factory_architecture(f"{code}:factory") != before


def test_a_wrapper_of_the_users_own_module_keeps_its_prefix(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Wrapped(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
        "    def forward(self, images):\n"
        "        return self.module(images)\n"
    )
    reference = f"{tmp_path / 'net.py'}:Wrapped"
    weights = factory_model(reference, None, allow_code=True).state_dict()
    for name, given in (("own.pt", weights), ("parallel.pt", {f"module.{key}": w for key, w in weights.items()})):
        torch.save(given, tmp_path / name)
        loaded = factory_model(reference, tmp_path / name, allow_code=True).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in weights.items())
