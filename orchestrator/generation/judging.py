"""Who says how good generated images are, and against which real ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.generation.making import Made, Sampling
from orchestrator.lens.networks import Network
from orchestrator.pages.csv_rows import CsvRow
from trainers.config import Data
from trainers.problems import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.generation.quality import Looked

_BATCH = 250


@dataclass(frozen=True)
class Judges:
    """Files of pretrained weights and a run folder; what is None is not measured."""

    inception: Path | None = None
    alexnet: Path | None = None
    classifier: Path | None = None


class Measures:
    """The metrics that the given judges allow, against all training images of the classes that are generated.

    Raises InvalidInput, before anything is generated, for a judge that could not look at the images.
    """

    def __init__(self, judges: Judges, network: Network, sampling: Sampling) -> None:
        from trainers.generation.quality import LEAST_SIDE, Extractor, classifier, inception, perceptual_distance
        from trainers.ranks import Ranks

        self._device = Ranks.current().device
        self._data, self._classes = network.subject.experiment.data, sampling.classes
        self._extractors: list[Extractor] = []
        if judges.inception is not None:
            self._extractors.append(inception(judges.inception))
        if judges.classifier is not None:
            self._extractors.append(classifier(_judge(judges.classifier, self._data)))
        if self._extractors and sampling.per_class * len(sampling.classes) < 2:
            raise InvalidInput.single("--per-class", "1: a distribution takes two images")
        if judges.alexnet is not None and self._data.size < LEAST_SIDE:
            raise InvalidInput.single(
                "--alexnet", f"LPIPS takes images of {LEAST_SIDE} pixels and more; these have {self._data.size}"
            )
        self._distance = None if judges.alexnet is None else perceptual_distance(judges.alexnet)

    def of(self, made: Made, seed: int) -> CsvRow:
        """Name -> value for the images of one network and init; `seed` is that of subsets and pairs."""
        import torch

        from trainers.generation.quality import distribution_metrics, perceptual_metrics

        found: dict[str, float] = {}
        generated = _channels_first(torch.from_numpy(made.images))
        for extractor, real in zip(self._extractors, self._seen, strict=True):
            looked = extractor.look(generated, _BATCH, self._device)
            found |= distribution_metrics(looked, real, extractor.suffix, seed=seed)
        if self._distance is not None:
            images, labels = self._real
            found |= perceptual_metrics(
                generated, images, torch.from_numpy(made.labels), labels, self._distance,
                batch_size=_BATCH, seed=seed, device=self._device,
            )  # fmt: skip
        return dict(found)

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        import torch

        from trainers.data.images import load_splits

        train = load_splits(self._data).train
        chosen = torch.isin(train.labels, torch.tensor(self._classes))
        return _channels_first(train.take(chosen)), train.labels[chosen]

    @cached_property
    def _seen(self) -> list[Looked]:
        """The real images through each extractor, once for all networks and inits."""
        return [extractor.look(self._real[0], _BATCH, self._device) for extractor in self._extractors]


def _judge(folder: Path, data: Data) -> nn.Module:
    from orchestrator.evaluation.subjects import own_subjects

    (subject,) = own_subjects(folder, None, None)
    own = subject.experiment.data
    if (own.name, own.size) != (data.name, data.size):
        raise InvalidInput.single(
            "--classifier", f"{folder} is for {own.name} {own.size}x{own.size}, not {data.name} {data.size}x{data.size}"
        )
    return subject.load()


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous()
