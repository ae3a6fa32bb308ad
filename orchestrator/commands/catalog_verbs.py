"""Verbs that answer before anything runs: which methods and studies there are, whether a file and a machine will do."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.commands.options import Address, DataDir, Format, Storage, plain_console
from orchestrator.exit_codes import ENVIRONMENT, OK
from orchestrator.host.disk import DEFAULT_STORAGE
from trainers.problems import InvalidInput, Problem


def methods(
    name: Annotated[str | None, typer.Argument(help="one method, in full")] = None, format: Format = "table"
) -> None:
    """The training methods: slots, parameters, cost, source."""
    from orchestrator.commands.listing import print_method, print_methods

    print_method(name, format) if name else print_methods(format)


def spaces(
    name: Annotated[str | None, typer.Argument(help="one study, in full")] = None, format: Format = "table"
) -> None:
    """The studies that ship with this package."""
    from orchestrator.commands.listing import print_space, print_spaces

    print_space(name, format) if name else print_spaces(format)


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
