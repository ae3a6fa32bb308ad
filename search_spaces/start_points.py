"""Points that a study tries first: the section `search.start`. Each is a point of the space, or a part of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.dimension import Dimension
from search_spaces.space import Point, completed, problems_at
from trainers.problems import Problem, unknown_name


def read_points(space: Sequence[Dimension], points: Sequence[Point]) -> list[dict[str, Any]]:
    """Valid points with their values as a trial would draw them: `8/255` in a range is a number."""
    return [{dim.path: dim.read(point[dim.path]) for dim in space if dim.path in point} for point in points]


def check_points(space: Sequence[Dimension], points: Sequence[Point], base: Mapping[str, Any] | None) -> list[Problem]:
    """Every value that no trial would have. With `base`, also every point that is no Experiment around it."""
    problems: list[Problem] = []
    sound: dict[int, dict[str, Any]] = {}
    for place, point in enumerate(points):
        field = f"search.start.{place}"
        values, found = _read(space, point, field)
        found += _outside(space, values, field)
        if not found and base is not None:
            found += _invalid(space, values, base, field)
        if not found:
            twin = next((other for other, known in sound.items() if known == values), None)
            if twin is not None:
                found.append(Problem(field, f"is search.start.{twin} again"))
            sound[place] = values
        problems += found
    return problems


def _read(space: Sequence[Dimension], point: Point, field: str) -> tuple[dict[str, Any], list[Problem]]:
    """What can be read of a point, in the order of the space, and what can't."""
    known = {dimension.path for dimension in space}
    problems = [
        Problem(f"{field}.{path}", unknown_name(path, known, "dimension")) for path in point if path not in known
    ]
    values = {}
    for dimension in space:
        if dimension.path in point:
            try:
                values[dimension.path] = dimension.read(point[dimension.path])
            except ValueError as error:
                problems.append(Problem(f"{field}.{dimension.path}", str(error)))
    return values, problems


def _outside(space: Sequence[Dimension], values: Mapping[str, Any], field: str) -> list[Problem]:
    """Values of dimensions that don't exist there. What the point leaves open may still become what they need."""
    problems, possible = [], set()
    for dimension in space:
        conditions = dimension.when.items()
        if all(path in possible and values.get(path, allowed[0]) in allowed for path, allowed in conditions):
            possible.add(dimension.path)
        elif dimension.path in values:
            given = values[dimension.path]
            message = f"{given!r}: there is no such dimension at this point, only when {dimension.condition}"
            problems.append(Problem(f"{field}.{dimension.path}", message))
    return problems


def _invalid(
    space: Sequence[Dimension], values: Mapping[str, Any], base: Mapping[str, Any], field: str
) -> list[Problem]:
    """What an Experiment does not allow at the point, or at one that it is a part of."""
    whole = completed(space, values)
    if not values.keys() <= whole.keys():
        return []  # it leaves open what some of its values need: a trial draws that, or leaves those out
    return [Problem(f"{field}.{problem.field}", problem.message) for problem in problems_at(space, whole, base)]
