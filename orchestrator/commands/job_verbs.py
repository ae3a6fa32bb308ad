"""`submit`, and the verbs of `job`: studies whose driver runs on a cluster, from a machine that need not stay."""

from __future__ import annotations

import asyncio
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.options import with_data_dir
from orchestrator.exit_codes import INTERRUPTED
from search_spaces.addresses import sqlite_file
from trainers.problems import InvalidInput, Problem

if TYPE_CHECKING:
    from orchestrator.cluster.jobs import Jobs
    from search_spaces.study import Study

job = typer.Typer(help="Studies that were submitted to a cluster.", no_args_is_help=True, rich_markup_mode=None)

Dashboard = Annotated[
    str | None, typer.Option("--address", help="http://HEAD:8265 of the cluster; default: RAY_API_SERVER_ADDRESS")
]
Name = Annotated[str, typer.Argument(metavar="JOB", help="as `job list` shows it, e.g. quickstart-1")]


def submit(
    study: Annotated[str, typer.Argument(help="a study file, or the name of a shipped study")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings")] = None,
    storage: Annotated[str, typer.Option(help="folder for the study folders, shared by all nodes; required")] = "",
    address: Dashboard = None,
    data_dir: Annotated[str, typer.Option(help="folder of the data sets on the nodes")] = "",
    python: Annotated[str, typer.Option(help="Python that has this package on the head node")] = "python",
    smoke: Annotated[bool, typer.Option("--smoke", help="the same study, as small as it can be")] = False,
) -> None:
    """Run a study as a job of a cluster. Its driver runs there: this machine may leave."""
    from orchestrator.cluster.jobs import Jobs, Place
    from search_spaces.loader import load_study

    if not storage:
        raise InvalidInput.single("--storage", "is missing: the folder for the study folders, shared by all nodes")
    given = {"--storage": storage, "--data-dir": data_dir or "/"}
    relative = [
        Problem(option, f"{path!r}: must be an absolute path, on the nodes of the cluster")
        for option, path in given.items()
        if not path.startswith("/")
    ]
    if relative:
        raise InvalidInput(relative)
    loaded = with_data_dir(load_study(study, words or [], smoke=smoke), Path(data_dir) if data_dir else None)
    _check_database(loaded, storage)
    # One folder is written one way: that is how a study is known that runs already.
    _announce(Jobs(address).submit(loaded, Place(posixpath.normpath(storage), python)))


def _check_database(study: Study, storage: str) -> None:
    """Raise InvalidInput for a file on this machine: the driver would look for it on another."""
    database = study.search.storage or ""
    file = sqlite_file(database)
    if file is not None and not file.is_relative_to(storage):
        raise InvalidInput.single(
            "search.storage", f"{database!r}: lies outside of {storage}, which is what the nodes share; leave it out "
            "(then it is in the study's folder there) or name a database server"
        )  # fmt: skip


@job.command("list")
def list_jobs(address: Dashboard = None) -> None:
    """Every job that the cluster remembers."""
    remembered = _jobs(address).all()
    if not remembered:
        print("no jobs: the cluster remembers none that was submitted with this package")
    for known in remembered:
        print(f"{known.name:<24} {known.state:<10} {known.folder}")


@job.command()
def status(name: Name, address: Dashboard = None) -> None:
    """Whether a job runs, and what it said last."""
    jobs = _jobs(address)
    known = jobs.find(name)
    code = "" if known.exit_code is None else f" (exit code {known.exit_code})"
    print(f"{known.name}: {known.state}{code}, {known.folder}")
    for line in jobs.logs(name).splitlines()[-5:]:
        print(f"  {line}")


@job.command()
def logs(
    name: Name,
    address: Dashboard = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the job ends, with its exit code")] = False,
) -> None:
    """Print what a job's driver says. Ctrl-C ends the following, not the job."""
    if not follow:
        print(_jobs(address).logs(name), end="")
        return
    try:
        jobs = _jobs(address)  # imports Ray: seconds in which somebody may have seen enough
        asyncio.run(_print(jobs, name))
    except KeyboardInterrupt:
        print(f"\n{name} goes on; to stop it: orchestrator job stop {name}")
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(jobs.find(name).outcome)


@job.command()
def stop(name: Name, address: Dashboard = None) -> None:
    """Let a job finish its epoch and end, as Ctrl-C does."""
    if _jobs(address).stop(name):
        print(f"{name} ends after its epoch; to go on with its study: orchestrator job resume {name}")
    else:
        print(f"{name} does not run")


@job.command()
def resume(name: Name, address: Dashboard = None) -> None:
    """Go on with the study of a job that has ended, as a new job; one that is finished is told as such."""
    jobs = _jobs(address)
    latest = jobs.latest(name)
    if latest.state == "succeeded":
        print(
            f"{latest.study} is finished (job {latest.name}); its report, on the cluster: {latest.folder}/report.html"
        )
        return
    _announce(jobs.resume(name))


def _jobs(address: str | None) -> Jobs:
    from orchestrator.cluster.jobs import Jobs

    return Jobs(address)


def _announce(name: str) -> None:
    print(f"{name} is submitted; its driver runs on the cluster, this machine may leave")
    print(f"follow:  orchestrator job logs {name} --follow")
    print(f"stop:    orchestrator job stop {name}")


async def _print(jobs: Jobs, name: str) -> None:
    async for text in jobs.follow(name):
        print(text, end="", flush=True)
