"""What a trial must hold to be chosen: the section `search.constraints` of a study."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from trainers.config import Section


class Constraint(Section):
    """A metric of the epoch that counts is at least `at_least`, or at least a starting point's value less `minus`.

    `baseline` is the place of that point in `search.start`, from 0. Until its trial has ended, nothing is known of the
    others: proposals go on without the constraint, the choice at the end applies it to all. A baseline that was stopped
    or failed counts here with what it reached.
    """

    at_least: float | None = Field(default=None, ge=0, le=1, description="an accuracy as a fraction")
    baseline: int | None = Field(default=None, ge=0, description="place in search.start")
    minus: float = Field(default=0.0, ge=0, le=1, description="how far below the baseline is allowed")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.at_least is None) == (self.baseline is None):
            raise ValueError("give either at_least or baseline")
        if self.at_least is not None and self.minus:
            raise ValueError("minus belongs to a baseline")
        return self
