"""The learning-rate schedules."""

from __future__ import annotations

from trainers.catalog.entries import Entry, Parameter

SCHEDULES: dict[str, Entry] = {
    "triangular": Entry(
        "trainers.schedules:triangular", "linear up to the peak, linear down to zero",
        "Wong et al. 2020, arXiv 2001.03994",
        parameters={"peak": Parameter(0.5, "where the peak lies, as a fraction of the run", above=0.0, high=0.99)},
    ),
    "onecycle": Entry(
        "trainers.schedules:onecycle", "cosine up from 1/25, cosine down to 4e-6 of the peak", "WEAT, arXiv 2407.06315",
        parameters={"peak": Parameter(0.25, "where the peak lies, as a fraction of the run", above=0.0, high=0.99)},
    ),
    "piecewise": Entry(
        "trainers.schedules:piecewise", "divided at each milestone", "Rice et al. 2020, arXiv 2002.11569",
        parameters={
            "milestones": Parameter([0.5, 0.75], "where it drops, as fractions of the run"),
            "factor": Parameter(0.1, "what it is multiplied by at a drop", above=0.0, high=1.0),
        },
    ),
    "constant": Entry("trainers.schedules:constant", "no schedule", "-"),
}  # fmt: skip
