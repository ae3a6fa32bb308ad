"""Options that several verbs share, and the console that they print to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainers.problems import InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

    from search_spaces.study import Study

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, e.g. search.trials=4")]
Storage = Annotated[Path, typer.Option(help="folder that holds the study folders (shared storage on a cluster)")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to use; default: RAY_ADDRESS, else a private local Ray")]
DataDir = Annotated[Path | None, typer.Option(help="folder of the data sets; default: ORCHESTRATOR_DATA")]
Format = Annotated[str, typer.Option("--format", help="table, json or csv")]
ATTACK_HELP = "pgd20, cw, autoattack, worst, … (a wrong name lists all), or several, each on what the last one left"
_FILE_COLUMNS = 200


def with_data_dir(study: Study, data_dir: Path | None) -> Study:
    """The study with its data where `--data-dir` says. Raises InvalidInput where it compares folders of data."""
    if data_dir is None:
        return study
    rows = (row for dimension in study.space for row in dimension.variants.values())
    if any("data.directory" in paths for paths in ({dimension.path for dimension in study.space}, *rows)):
        raise InvalidInput.single("--data-dir", "has no effect, for data.directory varies: set it in the space")
    return study.with_data_in(data_dir)


def plain_console() -> Console:
    """Where verbs print: words as they are, also brackets and colons. A file or a pipe has no width to keep to."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_COLUMNS
    return console
