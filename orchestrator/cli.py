"""The command line. Each verb imports what it needs: `--help`, `methods`, `validate` and `--dry-run` answer at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.commands.job_verbs import job, submit
from orchestrator.commands.model_verbs import ATTACK_HELP, DataDir, evaluate, generate, lens, plain_console, subsets
from orchestrator.exit_codes import BAD_INPUT, ENVIRONMENT, INTERNAL, INTERRUPTED, OK
from orchestrator.host import disk
from orchestrator.records import DEFAULT_STORAGE
from trainers.problems import InvalidInput, Problem

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, e.g. search.trials=4")]
Storage = Annotated[Path, typer.Option(help="folder that holds the study folders (shared storage on a cluster)")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to use; default: RAY_ADDRESS, else a private local Ray")]
Format = Annotated[str, typer.Option("--format", help="table, json or csv")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"energy-orchestrator {version('energy-orchestrator')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version, and stop")
    ] = False,
) -> None:
    """Distributed adversarial training on Ray, seen through the energy of the classifier."""


@app.command()
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

    overrides = list(words or [])
    if data_dir is not None:
        overrides.append(f"experiment.data.directory={data_dir.absolute()}")
    loaded = load_study(study, overrides, smoke=smoke)
    if dry_run:
        from orchestrator.study.plan import print_plan

        print_plan(loaded, storage, address)
        return
    from orchestrator.study.run import relative, run_study
    from search_spaces.rooted import rooted

    folder = storage / loaded.name
    again = ["resume", relative(folder), *_options(address=address)]
    raise typer.Exit(run_study(rooted(loaded), folder, address, plain_console(), again=again))


app.command()(submit)
app.add_typer(job, name="job")


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")],
    address: Address = None,
    data_dir: DataDir = None,
) -> None:
    """Continue an interrupted study: finished trials stay, unfinished ones go on from their checkpoints."""
    from orchestrator.records.study_folder import open_study_folder, read_study
    from orchestrator.study.run import relative, run_study

    journal = open_study_folder(folder)
    held = read_study(journal.folder)
    study = held if data_dir is None else held.with_data_in(data_dir)
    again = ["resume", relative(journal.folder), *_options(address=address)]
    raise typer.Exit(run_study(study, journal.folder, address, plain_console(), again=again))


@app.command()
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
    raw = (held if data_dir is None else held.with_data_in(data_dir)).to_raw()
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


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")]) -> None:
    """Write report.html and the figures of a study anew, whatever state it is in."""
    from orchestrator.records.study_folder import open_study_folder
    from orchestrator.report.page import write_report

    print(write_report(open_study_folder(folder)))


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the study's driver ends")] = False,
) -> None:
    """Show a study, running or not, from any terminal that sees its folder."""
    from orchestrator.commands.status import show_status

    show_status(folder, plain_console(), follow=follow)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="study folders")], format: Format = "table"
) -> None:
    """Rank the confirmed results of several studies; other protocols are shown apart, with the reason."""
    from orchestrator.commands.compare import compare as compare_studies

    compare_studies(folders, format, plain_console())


@app.command()
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


@app.command()
def train(
    words: Annotated[list[str] | None, typer.Argument(metavar="[EXPERIMENT.yaml] [KEY=VALUE]...")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="default: runs/<digest of the experiment>")] = None,
    data_dir: DataDir = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Train once, in this process: no Ray, no tracking, the same records and checkpoints."""
    from trainers.__main__ import main as train_main

    arguments = list(words or [])
    if data_dir is not None:
        arguments.append(f"data.directory={data_dir.absolute()}")
    arguments += ["--run-dir", str(run_dir)] if run_dir else []
    arguments += ["--threads", str(threads)] if threads else []
    raise typer.Exit(train_main(arguments))


for verb in (evaluate, lens, subsets, generate):
    app.command()(verb)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="one method, in full")] = None, format: Format = "table"
) -> None:
    """The training methods: slots, parameters, cost, source."""
    from orchestrator.commands.listing import print_method, print_methods

    print_method(name, format) if name else print_methods(format)


@app.command()
def spaces(
    name: Annotated[str | None, typer.Argument(help="one study, in full")] = None, format: Format = "table"
) -> None:
    """The studies that ship with this package."""
    from orchestrator.commands.listing import print_space, print_spaces

    print_space(name, format) if name else print_spaces(format)


@app.command()
def validate(files: Annotated[list[str], typer.Argument(help="study files, or names of shipped studies")]) -> None:
    """Check study files completely, every corner of their spaces included."""
    from search_spaces.loader import load_study

    problems: list[Problem] = []
    for file in files:
        try:
            study = load_study(file)
        except InvalidInput as error:
            # A file that can't be read is the field of its own problem.
            named = (Problem(file, str(found)) if found.field != file else found for found in error.problems)
            problems.extend(named)
            continue
        for notice in study.notices:
            print(f"{file}: note: {notice}")
        print(f"{file}: valid ({study.name}, {len(study.space)} dimensions, {study.trials} trials)")
    if problems:
        raise InvalidInput(problems)


@app.command()
def doctor(
    study: Annotated[str | None, typer.Argument(help="a study whose data must be there")] = None,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
) -> None:
    """Check what a study needs: Python, torch, GPUs, Ray, MLflow, disk, data; on a cluster, on each node."""
    from orchestrator.commands.doctor import examine
    from search_spaces.loader import load_study

    loaded = load_study(study) if study else None
    raise typer.Exit(OK if examine(address, storage, data_dir, loaded, plain_console()) else ENVIRONMENT)


def main(arguments: list[str] | None = None) -> int:
    """Entry point: runs a verb and turns what went wrong into one message and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        result: Any = app(args=words, prog_name="orchestrator", standalone_mode=False)
        code = result if isinstance(result, int) else OK
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, KeyboardInterrupt) and not hasattr(error, "show"):
            raise
        code = _told(error)
    if arguments is None:
        sys.exit(code)
    return code


def _told(error: BaseException) -> int:
    """Print what went wrong in one message, and last the command that goes on from there; returns the exit code."""
    code = _message(error)
    for note in getattr(error, "__notes__", ()):
        print(note, file=sys.stderr)
    return code


def _message(error: BaseException) -> int:
    show = getattr(error, "show", None)  # typer's own errors: a wrong option, a missing argument
    if show is not None:
        show()
        return BAD_INPUT
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, InvalidInput):
        print(error.said, file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, ConnectionError):
        print(f"error: {error}", file=sys.stderr)
        return ENVIRONMENT
    if disk.is_full(error):
        print(f"error: the disk is full ({error}); free some space and resume", file=sys.stderr)
        return ENVIRONMENT
    if isinstance(error, OSError) and error.filename is not None:
        print(
            f"error: {error.filename}: {error.strerror}; name another place, or let this one be read and written",
            file=sys.stderr,
        )
        return ENVIRONMENT
    print(f"internal error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
    return INTERNAL


if __name__ == "__main__":
    main()
