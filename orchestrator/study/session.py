"""What every phase of a study has at hand."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.cluster.connection import Capacity
from orchestrator.host.interrupt import Interrupt
from orchestrator.records.journal import Journal
from orchestrator.study.progress import StudyView
from search_spaces.study import Study


@dataclass(frozen=True)
class Session:
    """A study, its memory, the Ray that it runs on, what its user sees, and whether that user has pressed Ctrl-C."""

    study: Study
    journal: Journal
    capacity: Capacity
    view: StudyView
    interrupt: Interrupt
