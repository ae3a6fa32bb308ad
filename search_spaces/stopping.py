"""When a trial is stopped before its last epoch: the section `search.stop` of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from trainers.config import Section


class RobustPatience(Section):
    """Stop once robust overfitting has set in, when the best epoch lies `patience` epochs back.

    Patience alone would stop before the learning rate drops, after which the best epoch of most recipes comes.
    """

    patience: int = Field(ge=1, description="epochs since the highest held-out robust accuracy")


class Pruning(Section):
    """Stop a trial that falls behind the others of its own method on held-out robust accuracy.

    asha: compared after grace_epochs, then after `reduction` times as many, and so on; the best 1/reduction of those
    that got there go on. hyperband: the same in brackets that begin one comparison later each; trials take turns by
    number, and those of the last bracket always end. median: compared every epoch from grace_epochs on; the best value
    so far must reach the median of at least three others at that epoch.
    """

    rule: Literal["asha", "median", "hyperband"]
    grace_epochs: int = Field(ge=1, description="epochs before the first comparison; one-cycle: a fifth of all or more")
    reduction: int | None = Field(default=None, ge=2, description="default: 2; not for median")

    @model_validator(mode="after")
    def _median_has_no_reduction(self) -> Self:
        if self.rule == "median" and self.reduction is not None:
            raise ValueError("median has no reduction")
        return self

    def comparisons(self, trial: int, epochs: int) -> Sequence[int]:
        """After how many epochs this trial is compared; never after the last one."""
        if self.rule == "median":
            return range(self.grace_epochs, epochs)
        return self._rungs(epochs)[self.bracket(trial, epochs) :]

    def bracket(self, trial: int, epochs: int) -> int:
        """Only trials of one bracket are compared; 0 for all where there are none."""
        return trial % (len(self._rungs(epochs)) + 1) if self.rule == "hyperband" else 0

    def _rungs(self, epochs: int) -> list[int]:
        reached, rungs = self.grace_epochs, []
        while reached < epochs:
            rungs.append(reached)
            reached *= self.reduction or 2
        return rungs


class Stopping(Section):
    """Rules that can be combined: the first that holds stops the trial. Without any, every trial runs to its end."""

    catastrophic: bool = Field(
        default=False,
        description="in the epoch in which robust accuracy collapses, or a check in it with ΔE",
    )
    robust: RobustPatience | None = None
    prune: Pruning | None = None
