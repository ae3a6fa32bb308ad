"""YAML as people write numbers: PyYAML reads `1e-3` as text, since its standard wants `1.0e-3`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from trainers.problems import InvalidInput


class _Loader(yaml.SafeLoader):
    """SafeLoader that knows every spelling of a number with an exponent, and refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As it is written: keys that `<<` brings along may be given again."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            identity, line = (key.tag, key.value), key.start_mark.line + 1
            if identity in lines:
                # PyYAML would let the last one win without a word.
                raise yaml.YAMLError(f"{key.value!r} is given twice, in line {lines[identity]} and in line {line}")
            lines[identity] = line
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain data from YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def read_table(path: Path) -> dict[str, Any]:
    """The table in a YAML file. Raises InvalidInput, with the line at fault."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput.single(str(path), f"can't be read: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput.single(str(path), "is not a table of settings")
    return content
