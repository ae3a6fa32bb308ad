"""Verbs about studies and their folders: run, continue, confirm, and read what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.options import (
    ATTACK_HELP,
    Address,
    DataDir,
    Format,
    Storage,
    Words,
    plain_console,
    with_data_dir,
)
from orchestrator.records import DEFAULT_STORAGE
from trainers.problems import InvalidInput


def sweep(
    study: Annotated[str, typer.Argument(help="a study file, or the name of a shipped study")],
    words: Words = None,
    storage: Storage = DEFAULT_STORAGE,
    address: Address = None,
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done, and stop")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="the same study, as small as it can be")] = False,
) -> None:
    """Run a study: search, confirm the best, report. Run it again to continue it."""
    from search_spaces.loader import load_study

    loaded = with_data_dir(load_study(study, words or [], smoke=smoke), data_dir)
    if dry_run:
        from orchestrator.study.plan import print_plan

        print_plan(loaded, storage, address)
        return
    from orchestrator.study.run import relative, run_study
    from search_spaces.rooted import rooted

    folder = storage / loaded.name
    again = ["resume", relative(folder), *_options(address=address)]
    raise typer.Exit(run_study(rooted(loaded), folder, address, plain_console(), again=again))


def resume(
    folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")],
    address: Address = None,
    data_dir: DataDir = None,
) -> None:
    """Continue an interrupted study: finished trials stay, unfinished ones go on from their checkpoints."""
    from orchestrator.records.study_folder import open_study_folder, read_study
    from orchestrator.study.run import relative, run_study

    journal = open_study_folder(folder)
    study = with_data_dir(read_study(journal.folder), data_dir)
    again = ["resume", relative(journal.folder), *_options(address=address)]
    raise typer.Exit(run_study(study, journal.folder, address, plain_console(), again=again))


def confirm(
    folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")],
    top: Annotated[int | None, typer.Option(help="how many configurations; default: the study's")] = None,
    seeds: Annotated[int | None, typer.Option(help="seeds of each; default: the study's")] = None,
    attack: Annotated[str | None, typer.Option(help=f"{ATTACK_HELP}; default: the study's")] = None,
    samples: Annotated[int | None, typer.Option(help="test images; default: the study's")] = None,
    address: Address = None,
    data_dir: DataDir = None,
) -> None:
    """Train the best configurations of a study again with fresh seeds and attack them on the test set."""
    from orchestrator.records.study_folder import open_study_folder, read_study
    from orchestrator.study.run import relative, run_study
    from search_spaces.study import parse_study

    journal = open_study_folder(folder)
    given = {"top": top, "seeds": seeds, "attack": attack, "samples": samples}
    held = read_study(journal.folder)
    raw = with_data_dir(held, data_dir).to_raw()
    raw["confirm"] |= {name: value for name, value in given.items() if value is not None}
    if top is not None:
        raw["confirm"]["ladder"] = [rung.model_dump() for rung in held.confirm.ladder_for(top)]
    study = parse_study(raw)
    if not study.confirm.top:
        message = "0: nothing would be confirmed; say how many configurations, at least 1, with --top N"
        raise InvalidInput.single("confirm.top", message)
    again = ["confirm", relative(journal.folder), *_options(**given, address=address)]
    again += [] if data_dir is None else ["--data-dir", str(data_dir.absolute())]
    raise typer.Exit(run_study(study, journal.folder, address, plain_console(), again=again, search=False))


def _options(**given: object) -> list[str]:
    """Options as they were typed; those that were not are left out."""
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def report(folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")]) -> None:
    """Write report.html and the figures of a study anew, whatever state it is in."""
    from orchestrator.records.study_folder import open_study_folder
    from orchestrator.report.page import write_report

    print(write_report(open_study_folder(folder)))


def status(
    folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the study's driver ends")] = False,
) -> None:
    """Show a study, running or not, from any terminal that sees its folder."""
    from orchestrator.commands.status import show_status

    show_status(folder, plain_console(), follow=follow)


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="study folders")], format: Format = "table"
) -> None:
    """Rank the confirmed results of several studies; other protocols are shown apart, with the reason."""
    from orchestrator.commands.compare import compare as compare_studies

    compare_studies(folders, format, plain_console())


def sync(folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")]) -> None:
    """Bring MLflow up to date with a study's journal."""
    from orchestrator.records.driver_lock import only_driver
    from orchestrator.records.study_folder import open_study_folder, read_study
    from orchestrator.tracking import server
    from orchestrator.tracking.mirror import sync as bring_up_to_date

    journal = open_study_folder(folder)
    study = read_study(journal.folder)
    uri = server.tracking_uri(study, journal.folder.parent)
    server.check_reachable(uri, study.tracking.experiment)
    with only_driver(journal.folder):  # a driver does it by itself; both at once would make some runs twice
        bring_up_to_date(journal, uri)
    print(f"{uri} is up to date")
