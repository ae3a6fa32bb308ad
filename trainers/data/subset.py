"""Files of named subsets of a training set, as `orchestrator subsets` writes them. Read without torch.

JSON: `subsets` is a table of names with lists of indices into the whole training set, before anything is held out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from trainers.problems import InvalidInput, unknown_name

_FIELD = "data.subset"


def read_subset(file: str, name: str, expected: str | None = None) -> list[int]:
    """The sorted indices of one subset. Raises InvalidInput if it is not there, or not the one of `expected` hash."""
    try:
        subsets = json.loads(Path(os.path.expanduser(file)).read_text(encoding="utf-8"))["subsets"]
        if not isinstance(subsets, dict):
            raise TypeError("subsets is no table")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput.single(
            f"{_FIELD}.file", f"{file!r}: no such file of subsets ({error}); `orchestrator subsets` writes one"
        ) from error
    if name not in subsets:
        raise InvalidInput.single(f"{_FIELD}.name", unknown_name(name, subsets, "subset"))
    indices = subsets[name]
    if not isinstance(indices, list) or not indices or not all(type(i) is int and i >= 0 for i in indices):
        raise InvalidInput.single(f"{_FIELD}.file", f"{file!r}: {name} must be a list of indices, and not empty")
    if expected is not None and subset_hash(indices) != expected:
        raise InvalidInput.single(
            f"{_FIELD}.file", f"{file!r}: {name} is another subset than the one that this experiment was made with"
        )
    return sorted(set(indices))


def subset_hash(indices: Sequence[int]) -> str:
    """SHA-256 of which images they are, whatever their order: two files of the same subset make the same run."""
    return hashlib.sha256(json.dumps(sorted(set(indices))).encode()).hexdigest()
