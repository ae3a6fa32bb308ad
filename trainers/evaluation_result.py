"""Final numbers of one checkpoint as plain data: the protocol, and which images stand after each attack. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
# An evaluation's name -> its stages, in order; each attacks only what still stands.
ATTACKS: dict[str, tuple[str, ...]] = {
    "clean": (),
    "pgd20": ("pgd20",),
    "autoattack": AUTOATTACK,
}


@dataclass(frozen=True)
class Protocol:
    """What two numbers must share to be compared. `key` is its one-line form."""

    data: str
    split: str
    samples: int
    epsilon: str
    attack: str
    seed: int
    shard: int
    batch_size: int
    checkpoint: str
    precision: str = "float32"

    @property
    def key(self) -> str:
        """For example `digits/test n=64 autoattack ε=0.1 best seed=0 shard=64 batch=64 float32`."""
        return (
            f"{self.data}/{self.split} n={self.samples} {self.attack} ε={self.epsilon} {self.checkpoint} "
            f"seed={self.seed} shard={self.shard} batch={self.batch_size} {self.precision}"
        )

    @property
    def digest(self) -> str:
        """Short hash of the key, for file names."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Flags:
    """Which images of `start`..`stop` still stand after each stage; `clean` is the first stage. Lists of bool."""

    start: int
    stop: int
    standing: Mapping[str, tuple[bool, ...]]

    def merged(self, other: Flags) -> Flags:
        """The same stages on two ranges that follow one another."""
        if self.stop != other.start or list(self.standing) != list(other.standing):
            raise ValueError("only neighbouring ranges with the same stages can be merged")
        both = {stage: flags + other.standing[stage] for stage, flags in self.standing.items()}
        return Flags(self.start, other.stop, both)


@dataclass(frozen=True)
class Evaluation:
    """The result for one checkpoint: the protocol, who it was, and the flags of every image."""

    protocol: Protocol
    experiment_digest: str
    epoch: int
    flags: Flags

    @property
    def accuracies(self) -> dict[str, float]:
        """Share of images standing after each stage, cumulative: the last one is the worst case over all attacks."""
        return {stage: sum(flags) / len(flags) for stage, flags in self.flags.standing.items()}

    @property
    def robust_accuracy(self) -> float:
        """Share that stands after all stages."""
        return list(self.accuracies.values())[-1]

    def save(self, file: Path) -> None:
        """Write as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        content = asdict(self) | {"accuracies": self.accuracies}
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content) + "\n")
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> Evaluation:
        """Inverse of `save`."""
        content = json.loads(file.read_text())
        flags = content["flags"]
        standing = {stage: tuple(values) for stage, values in flags["standing"].items()}
        return cls(
            Protocol(**content["protocol"]),
            content["experiment_digest"],
            content["epoch"],
            Flags(flags["start"], flags["stop"], standing),
        )
