"""Final numbers of one model as plain data: the protocol, and which images stand after each attack. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainers import catalog
from trainers.problems import InvalidInput
from trainers.whole_files import write_whole

# What `Protocol.precision` may be. Fast: attacks search in bfloat16, the network judges in float32.
EXACT, FAST = "float32", "bfloat16-search"


@dataclass(frozen=True)
class Protocol:
    """What two numbers must share to be compared. `key` is its one-line form.

    `training` is what was spent: the network, the epochs, generated images; empty where nobody knows.
    """

    data: str
    split: str
    samples: int
    epsilon: str
    attack: str
    seed: int
    shard: int
    batch_size: int
    checkpoint: str
    precision: str = EXACT
    training: str = ""

    @property
    def key(self) -> str:
        """For example `digits/test n=64 autoattack ε=0.1 best seed=0 shard=64 batch=64 float32; small, 3 epochs`."""
        attacked = (
            f"{self.data}/{self.split} n={self.samples} {self.attack} ε={self.epsilon} {self.checkpoint} "
            f"seed={self.seed} shard={self.shard} batch={self.batch_size} {self.precision}"
        )
        return attacked + (f"; {self.training}" if self.training else "")

    @property
    def digest(self) -> str:
        """Short hash of the key, for file names."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:8]

    @property
    def is_fast(self) -> bool:
        """Whether attacks search in bfloat16: robust accuracies are upper bounds a little above the exact ones."""
        return self.precision == FAST

    def ranges(self) -> list[tuple[int, int]]:
        """Index ranges of the fixed shard length, in order."""
        return [(start, min(start + self.shard, self.samples)) for start in range(0, self.samples, self.shard)]


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

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Flags:
        """Inverse of `dataclasses.asdict` and JSON."""
        standing = {stage: tuple(values) for stage, values in content["standing"].items()}
        return cls(content["start"], content["stop"], standing)


def subset_indices(available: int, samples: int) -> np.ndarray:
    """Which of `available` images are attacked, sorted: the first `samples` of a fixed, class-mixed order."""
    return np.sort(np.random.default_rng(0).permutation(available)[: min(samples, available)])


@dataclass(frozen=True)
class ForeignModel:
    """Who a model is that no Experiment of ours made: its architecture in words, the SHA-256 of all its tensors."""

    architecture: str
    weights: str


@dataclass(frozen=True)
class EvaluationResult:
    """The result for one model: the protocol, who it was, and the flags of every image.

    A checkpoint of ours is known by the digest of its Experiment and its epoch, any other model by `foreign`.
    `warnings` say what makes the numbers doubtful; see `consistency`.
    """

    protocol: Protocol
    experiment_digest: str | None
    epoch: int | None
    flags: Flags
    foreign: ForeignModel | None = None
    warnings: tuple[str, ...] = ()

    @property
    def accuracies(self) -> dict[str, float]:
        """Share of images standing after each stage, cumulative: the last one is the worst case over all attacks."""
        return {stage: sum(flags) / len(flags) for stage, flags in self.flags.standing.items()}

    @property
    def images(self) -> list[int]:
        """Where each image lies in the whole test set, from 0, in the order of the flags; empty for another split."""
        if self.protocol.split != "test":
            return []
        # The name of the data, and for digits their size.
        dataset = catalog.DATASETS[self.protocol.data.partition(" ")[0]]
        indices = subset_indices(dataset.num_test, self.protocol.samples)[self.flags.start : self.flags.stop]
        return [int(index) for index in indices]

    @property
    def standard_errors(self) -> dict[str, float]:
        """Binomial standard error of each accuracy: sqrt(p (1 - p) / n)."""
        count = self.flags.stop - self.flags.start
        return {stage: math.sqrt(share * (1 - share) / count) for stage, share in self.accuracies.items()}

    @property
    def robust_accuracy(self) -> float:
        """Share that stands after all stages."""
        return list(self.accuracies.values())[-1]

    @property
    def subject(self) -> tuple[str | None, int | None, ForeignModel | None]:
        """Who was attacked: equal for evaluations of the same model."""
        return self.experiment_digest, self.epoch, self.foreign

    def save(self, file: Path) -> None:
        """Write as JSON, with what follows from the fields: `accuracies`, and `images`, whose flags they are."""
        content = asdict(self) | {"accuracies": self.accuracies, "images": self.images}
        write_whole(file, json.dumps(content) + "\n")

    @classmethod
    def load(cls, file: Path) -> EvaluationResult:
        """Inverse of `save`. Raises InvalidInput for a file that holds no evaluation."""
        try:
            content = json.loads(file.read_text())
            foreign = content["foreign"]
            return cls(
                Protocol(**content["protocol"]),
                content["experiment_digest"],
                content["epoch"],
                Flags.from_plain(content["flags"]),
                None if foreign is None else ForeignModel(**foreign),
                tuple(content["warnings"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput.single(
                str(file), f"can't be read ({type(error).__name__}: {error}); restore it, or remove it and evaluate "
                "again: a study that is resumed makes it anew from its shards"
            ) from error  # fmt: skip


def differences(first: EvaluationResult, second: EvaluationResult) -> dict[str, tuple[float, float]]:
    """For each stage the first accuracy minus the second, and its standard error, the images being the same.

    Raises ValueError unless the protocols differ in the checkpoint only.
    """
    if replace(first.protocol, checkpoint="") != replace(second.protocol, checkpoint=""):
        raise ValueError("accuracies under different protocols can't be subtracted")
    result = {}
    for stage, flags in first.flags.standing.items():
        pairs = [a - b for a, b in zip(flags, second.flags.standing[stage], strict=True)]
        mean = sum(pairs) / len(pairs)
        variance = sum((pair - mean) ** 2 for pair in pairs) / len(pairs)
        result[stage] = (mean, math.sqrt(variance / len(pairs)))
    return result
