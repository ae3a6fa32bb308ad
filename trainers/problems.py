"""What is wrong with an input, said so that the reader can mend it: field, value, what is allowed, nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

# Pydantic calls these by their names in Python.
_IN_YAML = {"tuple_type": "must be a list", "dict_type": "must be a table", "model_type": "must be a table"}


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration: `field` is the dotted path, `message` says what is allowed."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class InvalidInput(ValueError):
    """The user's input can't be run. Carries every problem that was found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)  # what an exception is made of again in another process

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))

    @property
    def said(self) -> str:
        """As a command prints it."""
        return f"error: {self}" if len(self.problems) == 1 else f"errors:\n{self}"

    @classmethod
    def single(cls, field: str, message: str) -> InvalidInput:
        """An error of one problem."""
        return cls([Problem(field, message)])


def unknown_name(given: object, allowed: Iterable[str], what: str) -> str:
    """Message for a name that is in no table: value, nearest valid name, all that is allowed."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown {what} {given!r}.{hint} Allowed: {', '.join(allowed)}."


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Turn pydantic's report into our problems: dotted field, value, what is allowed, nearest field name."""
    problems = []
    errors = error.errors()
    for item in errors:
        length = len(item["loc"])
        inside = any(len(other["loc"]) > length and other["loc"][:length] == item["loc"] for other in errors)
        if item["type"] == "too_short" and inside:
            continue  # it would not be too short without the mistakes in it
        place = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            message = unknown_name(item["loc"][-1], _fields_beside(model, item["loc"]), "field")
        elif item["type"] == "missing":
            message = "is missing"
        else:
            said = _IN_YAML.get(item["type"], item["msg"].removeprefix("Value error, "))
            message = f"{item['input']!r}: {said}"
        problems.append(Problem(place, message))
    return problems


def _fields_beside(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path[:-1]:
        if str(part) not in model.model_fields:
            continue  # a place in a list, or a key of a table, of what the field before it holds
        inside = next(_models_in(model.model_fields[str(part)].annotation), None)
        if inside is None:
            return []
        model = inside
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections in an annotation such as `tuple[Rung, ...]` or `Pruning | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
