"""Weights that others saved, in the containers that are usual: a state dict, alone or among other things."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainers.problems import InvalidInput

WRAPPERS = ("module.", "_orig_mod.")
NESTED = ("state_dict", "model_state_dict", "model")


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by the names that its author gave them, on the CPU.

    Reads `.safetensors`, and what `torch.save` wrote: a state dict, or one under `state_dict`, `model_state_dict` or
    `model`. The `module.` of DataParallel and the `_orig_mod.` of compiled models are taken off the names. Nothing in
    the file is executed. Raises InvalidInput for a file that is anything else.
    """
    if not file.is_file():
        raise InvalidInput.single(str(file), "is not a file")
    content: Any
    if file.suffix == ".safetensors":
        try:
            content = load_file(file)
        except SafetensorError as error:
            raise InvalidInput.single(str(file), f"is not a safetensors file ({error})") from error
    else:
        content = _unpickled(file)
    weights = _state_dict(content, file)
    while any(all(name.startswith(wrapper) for name in weights) for wrapper in WRAPPERS):
        weights = {name.partition(".")[2]: tensor for name, tensor in weights.items()}
    return weights


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, AttributeError, EOFError, KeyError, RuntimeError, ValueError) as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        if culprit is None:
            raise InvalidInput.single(str(file), f"can't be read as weights ({_reason(error)})") from error
        raise InvalidInput.single(
            str(file), f"refused: it holds more than tensors and would run {culprit[1]} when it is opened. Where you "
            "trust it, save model.state_dict() alone and give that file"
        ) from error  # fmt: skip


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise InvalidInput.single(str(file), f"holds a {type(content).__name__}, not a state dict")
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return dict(content)
    nested = [name for name in NESTED if isinstance(content.get(name), Mapping)]
    if len(nested) != 1:
        found = f"{' and '.join(nested)}: which one is meant?" if nested else f"only {_few(list(content))}"
        raise InvalidInput.single(
            str(file), f"is no state dict, and should hold one under {' | '.join(NESTED)}; it has {found}"
        )
    return _state_dict(content[nested[0]], file)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {list(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """What torch found, without its advice to execute the file after all."""
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return found[1] if found else (str(error) or type(error).__name__).splitlines()[0]


def _few(names: list[Any]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "") if names else "nothing"
