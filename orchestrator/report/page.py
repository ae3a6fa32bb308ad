"""`report.html`: one page about one study, and its figures and tables as files beside it.

It is the same for the same journals, byte by byte.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.pages.csv_rows import to_csv
from orchestrator.pages.document import document
from orchestrator.pages.files import FIGURES_FOLDER
from orchestrator.pages.plate import write_plate
from orchestrator.records.journal import Journal
from orchestrator.records.rungs import climbed
from orchestrator.records.storage import storage_url
from orchestrator.records.study_folder import STUDY_FILE, read_study
from orchestrator.report import sections
from orchestrator.report.held_out import held_out_points
from orchestrator.report.plates import plates
from orchestrator.report.tables import confirmations, results, trial_rows
from trainers.whole_files import write_whole

REPORT_FILE = "report.html"


def write_report(journal: Journal) -> Path:
    """Write `report.html` and `figures/` into the folder of a study, at any moment of it; returns the page."""
    study, runs = read_study(journal.folder), journal.runs()
    folder = journal.folder / FIGURES_FOLDER
    folder.mkdir(exist_ok=True)
    tested, tried, points = results(runs), trial_rows(study, runs), held_out_points(study, runs)
    events = journal.events()
    write_whole(folder / "results.csv", to_csv(row.flat() for row in tested))
    write_whole(folder / "trials.csv", to_csv(row.flat() for row in tried))
    shown = [write_plate(plate, folder) for plate in plates(study, runs, points, storage_url(study, journal.folder))]
    parts = [
        sections.opening(study, runs, points, events),
        sections.test_results(tested, confirmations(runs)),
        sections.ladder(list(climbed(events).values()), tried, runs),
        *shown,
        sections.all_trials(study, tried),
        sections.study_file((journal.folder / STUDY_FILE).read_text(encoding="utf-8")),
        sections.citations(),
    ]
    return write_whole(journal.folder / REPORT_FILE, document(study.name, parts))
