"""The Pareto front of points whose coordinates are all maximized."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_indices(points: Sequence[tuple[float, ...]]) -> set[int]:
    """Indices of the points that no other point dominates, in any number of coordinates; equal points all stay."""

    def dominates(other: tuple[float, ...], point: tuple[float, ...]) -> bool:
        return other != point and all(theirs >= own for theirs, own in zip(other, point, strict=True))

    return {index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)}
