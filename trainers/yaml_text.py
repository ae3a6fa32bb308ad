"""YAML as people write numbers: PyYAML reads `1e-3` as text, since its standard wants `1.0e-3`."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """SafeLoader that knows every spelling of a number with an exponent."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain data from YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)
