"""The command line. Each verb imports what it needs: `--help`, `methods`, `validate` and `--dry-run` answer at once."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from orchestrator.commands.catalog_verbs import doctor, methods, spaces, validate
from orchestrator.commands.job_verbs import job, submit
from orchestrator.commands.model_verbs import evaluate, generate, lens, subsets, train
from orchestrator.commands.study_verbs import compare, confirm, report, resume, status, sweep, sync
from orchestrator.exit_codes import BAD_INPUT, ENVIRONMENT, INTERNAL, INTERRUPTED, OK
from orchestrator.host import disk
from trainers.problems import InvalidInput

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


_VERBS: tuple[Callable[..., None], ...] = (
    sweep, submit, resume, confirm, report, status, compare, sync,
    train, evaluate, lens, subsets, generate,
    methods, spaces, validate, doctor,
)  # fmt: skip
for verb in _VERBS:
    app.command()(verb)
app.add_typer(job, name="job")


def main(arguments: list[str] | None = None) -> int:
    """Entry point: runs a verb and turns what went wrong into one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ε shows a question mark for it
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
