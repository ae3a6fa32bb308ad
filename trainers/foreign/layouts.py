"""How the usual public implementations name the layers of our architectures.

Names are translated one by one, so neither the order in a file nor equal shapes can mislead. Names outside these
tables are reported, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_BLOCK = re.compile(r"(?:layer|block)(\d+)\.(?:layer\.)?(\d+)\.(.+)")


@dataclass(frozen=True)
class Layout:
    """Public module names: `stem` -> our index, those inside a block -> ours, `norm` behind the blocks, `linear`."""

    stem: Mapping[str, int]
    block: Mapping[str, str]
    norm: str | None
    linear: tuple[str, ...] = ("linear", "fc")


_PRE_ACTIVATION = {
    "bn1": "norm1", "conv1": "conv1", "bn2": "norm2", "conv2": "conv2",
    "shortcut.0": "projection", "convShortcut": "projection",
}  # fmt: skip
_BASIC = {
    "conv1": "conv1", "bn1": "norm1", "conv2": "conv2", "bn2": "norm2",
    "shortcut.0": "shortcut.0", "shortcut.1": "shortcut.1",
    "downsample.0": "shortcut.0", "downsample.1": "shortcut.1",
}  # fmt: skip
LAYOUTS: dict[str, Layout] = {
    "preact_resnet18": Layout({"conv1": 0}, _PRE_ACTIVATION, norm="bn"),
    "resnet18": Layout({"conv1": 0, "bn1": 1}, _BASIC, norm=None),
    "wide_resnet28_10": Layout({"conv1": 0}, _PRE_ACTIVATION, norm="bn1"),
    "wide_resnet34_10": Layout({"conv1": 0}, _PRE_ACTIVATION, norm="bn1"),
}


def our_names(architecture: str, names: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """Public name -> the name in our network, as far as the table of the architecture goes.

    `ours` are the names of our network: an `nn.Sequential` of stem, blocks (in order, whatever the stage), head.
    Names that are ours already stay. A name that is missing from the result has no translation.
    """
    names, ours = list(names), list(ours)
    if set(names) & set(ours) or architecture not in LAYOUTS:
        return {name: name for name in names if name in set(ours)}
    layout = LAYOUTS[architecture]
    blocks = sorted({int(name.split(".")[0]) for name in ours if ".conv1." in name})
    places = sorted({(int(found[1]), int(found[2])) for name in names if (found := _BLOCK.match(name))})
    index = {place: number for place, number in zip(places, blocks, strict=False)}
    modules = {public: str(number) for public, number in layout.stem.items()}
    modules |= dict.fromkeys(layout.linear, ours[-1].split(".")[0])
    if layout.norm is not None:
        modules[layout.norm] = str(blocks[-1] + 1)
    translated = {}
    for name in names:
        module, _, tensor = name.rpartition(".")
        found = _BLOCK.match(module)
        if module in modules:
            translated[name] = f"{modules[module]}.{tensor}"
        elif found and found[3] in layout.block and (int(found[1]), int(found[2])) in index:
            place = index[int(found[1]), int(found[2])]
            translated[name] = f"{place}.{layout.block[found[3]]}.{tensor}"
    return translated
