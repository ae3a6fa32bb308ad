"""What may vary in a study: dimensions over dotted paths of the Experiment, some of them only under a condition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from search_spaces.dimension import Dimension, Suggests
from trainers.config import apply_values, by_path, parse
from trainers.problems import InvalidInput, Problem

Point = Mapping[str, Any]


def read_space(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The YAML forms, `path: [choices]`, `path: {low, high, …}`, `name: {variants: …}`, as fields of `Dimension`s."""
    table = []
    for path, content in raw.items():
        fields: dict[str, Any] = dict(content or {}) if isinstance(content, Mapping | None) else {"choices": content}
        conditions = fields.get("when", {})
        if isinstance(fields.get("variants"), Mapping) and fields["variants"]:
            fields.setdefault("choices", list(fields["variants"]))
        if isinstance(conditions, Mapping):
            fields["when"] = {key: value if isinstance(value, list) else [value] for key, value in conditions.items()}
        table.append({"path": path, **fields})
    return table


def suggest(space: Iterable[Dimension], trial: Suggests) -> dict[str, Any]:
    """The point of a trial: asks it for a value of every dimension that is active."""
    return _point(space, lambda dimension: dimension.suggest(trial))


def completed(space: Iterable[Dimension], values: Point) -> dict[str, Any]:
    """The point with these values, and the first extreme of every active dimension that has none.

    Values of dimensions that are not active there are left out.
    """
    return _point(space, lambda dimension: values.get(dimension.path, dimension.extremes[0]))


def _point(space: Iterable[Dimension], value: Callable[[Dimension], Any]) -> dict[str, Any]:
    """A value for every dimension that those before it make active, by path, in order."""
    point: dict[str, Any] = {}
    for dimension in space:
        if dimension.active(point):
            point[dimension.path] = value(dimension)
    return point


def settings(space: Iterable[Dimension], values: Point) -> dict[str, Any]:
    """The values of dimensions as values of fields: a variant becomes the fields that it stands for."""
    variants = {dimension.path: dimension.variants for dimension in space if dimension.variants}
    fields: dict[str, Any] = {}
    for path, value in values.items():
        fields |= variants[path][value] if path in variants else {path: value}
    return fields


def corners(space: Sequence[Dimension], together: int = 1) -> list[dict[str, Any]]:
    """Points that together reach every condition, and every extreme of every dimension under each of them.

    Up to `together` dimensions leave their first extreme at once.
    """
    return [
        completed(space, branch | moved)
        for branch, others in _branches(space, lambda gate: _deciding(gate, space))
        for moved in _moved(others, together)
    ]


def _moved(dimensions: Sequence[Dimension], most: int) -> Iterator[dict[str, Any]]:
    """Every choice of later extremes for none of the dimensions, for one, and so on for up to `most` at once."""
    for count in range(most + 1):
        for some in itertools.combinations(dimensions, count):
            for extremes in itertools.product(*(dimension.extremes[1:] for dimension in some)):
                yield {dimension.path: value for dimension, value in zip(some, extremes, strict=True)}


def grid_size(space: Sequence[Dimension]) -> int | None:
    """How many points the space has; None if a dimension is continuous."""
    if any(dimension.num_values is None for dimension in space):
        return None
    branches = _branches(space, lambda gate: gate.values)
    return sum(math.prod(dimension.num_values or 0 for dimension in others) for _, others in branches)


def _branches(
    space: Sequence[Dimension], values: Callable[[Dimension], Iterable[Any]]
) -> Iterator[tuple[dict[str, Any], list[Dimension]]]:
    """Every combination of `values` of the dimensions that conditions are on, and what other dimensions exist there."""
    gates = {path for dimension in space for path in dimension.when}
    branches: list[dict[str, Any]] = [{}]
    for gate in (dimension for dimension in space if dimension.path in gates):
        branches = [
            branch | chosen
            for branch in branches
            for chosen in ([{gate.path: value} for value in values(gate)] if gate.active(branch) else [{}])
        ]
    for branch in branches:
        active = completed(space, branch)
        yield branch, [dimension for dimension in space if dimension.path in active and dimension.path not in gates]


def _deciding(gate: Dimension, space: Sequence[Dimension]) -> list[Any]:
    """Its extremes, and what lies between them but conditions name."""
    values = list(gate.extremes)
    for named in (value for dimension in space for value in dimension.when.get(gate.path, ())):
        if named not in values and gate.refuse_condition([named]) is None:
            values.append(named)
    return values


def check_space(space: Sequence[Dimension], base: Mapping[str, Any]) -> list[Problem]:
    """Every way in which the space leaves what an Experiment allows; empty if it does not."""
    points = corners(space, together=2)  # two that are fine by themselves may contradict each other
    misplaced = list(_misplaced(space))
    return [
        *misplaced, *_unreached(space, points, misplaced), *_overridden(space, points),
        *_no_experiments(space, points, base),
    ]  # fmt: skip


def _misplaced(space: Sequence[Dimension]) -> Iterator[Problem]:
    """Conditions on what is no dimension before, or never has such a value; dimensions that come twice."""
    before: dict[str, Dimension] = {}
    for dimension in space:
        field = f"space.{dimension.path}"
        for path, allowed in dimension.when.items():
            if path not in before:
                yield Problem(f"{field}.when.{path}", "is not a dimension before this one")
            elif complaint := before[path].refuse_condition(allowed):
                yield Problem(f"{field}.when.{path}", complaint)
        if dimension.path in before:
            yield Problem(field, "is given twice")
        before[dimension.path] = dimension


def _unreached(space: Sequence[Dimension], points: Sequence[Point], misplaced: Sequence[Problem]) -> Iterator[Problem]:
    """Dimensions whose conditions never hold together, although each for itself may."""
    reached = {path for point in points for path in point}
    for dimension in space:
        field = f"space.{dimension.path}.when"
        if dimension.path not in reached and not any(problem.field.startswith(field) for problem in misplaced):
            yield Problem(field, f"no point of the space has {dimension.condition}")


def _overridden(space: Sequence[Dimension], points: Sequence[Point]) -> Iterable[Problem]:
    """Dimensions that set what one before them has set at the same point: that one would change nothing there.

    One with a condition on the other means it: a row of a table may be refined.
    """
    found: dict[tuple[str, str], Problem] = {}
    for point in points:
        already: dict[str, Dimension] = {}
        for dimension in (dimension for dimension in space if dimension.path in point):
            given = settings([dimension], {dimension.path: point[dimension.path]})
            for path, (before, other) in itertools.product(given, already.items()):
                if f"{before}.".startswith(f"{path}.") and other.path not in dimension.when:
                    message = (
                        f"sets {before} as well, and {other.path} = {point[other.path]} would have no effect; leave it "
                        f"out of one of them, or say when: {{{other.path}: …}} here"
                    )
                    found.setdefault((other.path, dimension.path), Problem(f"space.{dimension.path}", message))
            already |= {field: dimension for path, value in given.items() for field, _ in by_path(value, path)}
    return found.values()


def _no_experiments(space: Sequence[Dimension], points: Sequence[Point], base: Mapping[str, Any]) -> Iterable[Problem]:
    """What is wrong with an Experiment at a point; each field once, with the first point at which it is."""
    found: dict[str, Problem] = {}
    # The base by itself as well: what every point overrides would never be looked at.
    for point in ({}, *points):
        paths = settings(space, point)
        at = f" (at {', '.join(f'{path}={value}' for path, value in point.items())})" if point else ""
        for problem in problems_at(space, point, base):
            # A path that the space names is the space's mistake; anything else is the base experiment's.
            ours = any(problem.field.startswith(path) or path.startswith(problem.field) for path in paths)
            field = f"space.{problem.field}" if ours else f"experiment.{problem.field}"
            found.setdefault(field, Problem(field, problem.message + (at if ours else "")))
    return found.values()


def problems_at(space: Sequence[Dimension], point: Point, base: Mapping[str, Any]) -> Sequence[Problem]:
    """Why the base with the values of a point is no Experiment; empty if it is one."""
    try:
        parse(apply_values(base, settings(space, point)))
    except InvalidInput as error:
        return error.problems
    return ()
