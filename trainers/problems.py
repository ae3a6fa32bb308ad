"""What is wrong with an input, said so that the reader can mend it: field, value, what is allowed, nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


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
        super().__init__("\n".join(map(str, self.problems)))

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
