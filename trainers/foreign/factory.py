"""Models whose code is the user's own: `path/to/file.py:factory`."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from trainers.foreign.weights import read_weights, unwrapped
from trainers.problems import InvalidInput
from trainers.randomness import kept_random_state

FIELD = "--model"
# The files of factories that this process has executed, and what they imported from beside them: another process finds
# none of it by name, so whoever sends such a model there sends its code along.
FACTORY_MODULES: list[ModuleType] = []


def split_reference(reference: str) -> tuple[Path, str]:
    """`path/to/file.py:factory` in its two parts. Raises InvalidInput."""
    path, colon, name = reference.rpartition(":")
    file = Path(path)
    if not colon or file.suffix != ".py" or not name.isidentifier():
        raise InvalidInput.single(FIELD, f"{reference!r}: expected path/to/file.py:factory")
    if not file.is_file():
        raise InvalidInput.single(FIELD, f"{path!r} is not a file")
    return file, name


def factory_architecture(reference: str) -> str:
    """The reference as a name that tells versions apart: with a hash of the file (not of what that imports)."""
    file, name = split_reference(reference)
    return f"{file.name}:{name} {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


def factory_model(reference: str, weights: Path | None, *, allow_code: bool) -> nn.Module:
    """Call the factory, load `weights` strictly if there are any, and return the model in eval mode.

    The factory takes no argument and returns a module that maps float32 images in [0,1] to float32 logits, its input
    normalization inside. Its file is executed, hence `allow_code`; it may import what lies beside it. The global random
    state is left as it was. Raises InvalidInput, also for whatever goes wrong in the file.
    """
    file, name = split_reference(reference)
    if not allow_code:
        raise InvalidInput.single(
            FIELD, f"{reference!r} would execute the Python code in {file}: add --allow-code if you trust it"
        )
    with kept_random_state():
        model = _made(file, name)
    if not isinstance(model, nn.Module):
        raise InvalidInput.single(FIELD, f"{name}() of {file} returns {type(model).__name__}, not an nn.Module")
    if weights is not None:
        try:
            model.load_state_dict(unwrapped(read_weights(weights), model.state_dict()))
        except RuntimeError as error:
            raise InvalidInput.single(str(weights), f"does not fit {reference}: {error}") from error
    return model.eval()


def _made(file: Path, name: str) -> object:
    specification = importlib.util.spec_from_file_location(f"_foreign_{file.stem}", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    known = set(sys.modules)
    sys.modules[module.__name__] = module
    folder = str(file.absolute().parent)
    sys.path.insert(0, folder)
    try:
        specification.loader.exec_module(module)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise InvalidInput.single(FIELD, f"{file} defines no function {name}")
        return factory()
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput.single(FIELD, f"{file} failed with {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
        new = [sys.modules[name] for name in sys.modules.keys() - known - {module.__name__}]
        FACTORY_MODULES[:] = [*FACTORY_MODULES, module, *(other for other in new if _lies_in(other, folder))]


def _lies_in(module: ModuleType, folder: str) -> bool:
    """Whether a module was found through this folder, and not below it in an environment or as a part of our code."""
    top = module.__name__.partition(".")[0]
    places = (Path(folder, f"{top}.py"), Path(folder, top))
    found = getattr(module, "__file__", None)
    return top != "trainers" and found is not None and any(Path(found).is_relative_to(place) for place in places)
