"""A study whose runs end at once, with objectives that follow from what was proposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

from orchestrator.study.proposals import Outcome, Proposals, open_storage
from orchestrator.study.searcher import StudySearcher
from search_spaces.study import Study, parse_study


def made_up_study(**search: object) -> Study:
    return parse_study(
        {
            "name": "s",
            "experiment": {"evaluation": {"epsilon": 0.1}},
            "space": {
                "method.name": ["fgsm", "trades"],
                "method.beta": {"low": 1, "high": 10, "log": True, "when": {"method.name": "trades"}},
                "attack.epsilon": {"low": 0.05, "high": 0.2},
            },
            "search": {"trials": 8, "startup_trials": 2, "seed": 7, **search},
        }
    )


class Driver:
    """A searcher whose runs all end with objectives that follow from their values and their seed."""

    def __init__(self, url: str, study: Study, known: Mapping[tuple[int, int], Outcome] | None = None) -> None:
        self.heard: list[tuple[int, Outcome]] = []
        self.proposed: dict[int, dict[str, object]] = {}
        self.judge_values: Callable[[float], tuple[float, ...]] = lambda epsilon: (1 - epsilon, epsilon)
        self.known = dict(known or ())
        self.recorded = 0
        self.violations: Callable[[int], dict[str, float]] = lambda number: {}
        self.issued: list[tuple[int, int]] = []
        stored = open_storage(study, url, "its folder", None)
        self.searcher = StudySearcher(Proposals(study, stored), self, study.search.seeds)

    # What the searcher asks

    def propose(self, number: int, seed: int, values: dict[str, object]) -> dict[str, object]:
        self.proposed[number] = dict(values)
        self.issued.append((number, seed))
        return {"number": number}

    def judge(self, number: int, seed: int, report: dict[str, object]) -> Outcome | None:
        if "failure" in report:
            return Outcome("failed", str(report["failure"]))
        if report.get("interrupted") or report.get("crashed"):
            return None
        epsilon = float(self.proposed[number]["attack.epsilon"])
        return Outcome("complete", "", tuple(value + seed / 10 for value in self.judge_values(epsilon)))

    def decided(self, number: int, seed: int) -> Outcome | None:
        return self.known.get((number, seed))

    def epochs(self, number: int, seed: int) -> int:
        return self.recorded

    def ended(self, number: int, seed: int, outcome: Outcome) -> None:
        self.heard.append((number, outcome))

    def conclude(self, number: int, outcomes: list[Outcome]) -> Outcome:
        broken = [outcome for outcome in outcomes if not outcome.objectives]
        if broken:
            return broken[0]
        means = tuple(map(fmean, zip(*(outcome.objectives for outcome in outcomes), strict=True)))
        return Outcome("complete", "", means, violations=self.violations(number))

    # What a test does

    def start(self) -> int | None:
        configuration = self.searcher.suggest("tune-id")
        return configuration["number"] if isinstance(configuration, dict) else None

    def run_to_the_end(self) -> None:
        while self.start() is not None:
            self.searcher.ended("tune-id", {})


def url(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / name}.db"
