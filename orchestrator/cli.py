"""The command line. Each verb imports what it needs: `--help`, `methods`, `validate` and `--dry-run` answer at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import disk
from orchestrator.exit_codes import BAD_INPUT, ENVIRONMENT, INTERRUPTED, OK, SOME_FAILED
from orchestrator.job_verbs import job, submit
from trainers.problems import InvalidInput

app = typer.Typer(
    help="Distributed adversarial training on Ray, seen through the energy of the classifier.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, e.g. search.trials=4")]
Storage = Annotated[Path, typer.Option(help="folder that holds the study folders (shared storage on a cluster)")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to use; default: RAY_ADDRESS, else a private local Ray")]
DataDir = Annotated[Path | None, typer.Option(help="folder of the data sets; default: ORCHESTRATOR_DATA")]
Format = Annotated[str, typer.Option("--format", help="table, json or csv")]
ATTACK_HELP = "pgd20, cw, autoattack, worst, … (a wrong name lists all), or several, each on what the last one left"
DEFAULT_STORAGE = Path("runs")


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
        from orchestrator.plan import print_plan

        print_plan(loaded, storage, address)
        return
    from orchestrator.run import run_study

    raise typer.Exit(run_study(loaded, storage, address, _console()))


app.command()(submit)
app.add_typer(job, name="job")


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")], address: Address = None
) -> None:
    """Continue an interrupted study: finished trials stay, unfinished ones go on from their checkpoints."""
    from orchestrator.journal import Journal
    from orchestrator.run import run_study

    loaded = Journal.open(folder).study()
    raise typer.Exit(run_study(loaded, folder.absolute().parent, address, _console()))


@app.command()
def confirm(
    folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")],
    top: Annotated[int | None, typer.Option(help="how many configurations; default: the study's")] = None,
    seeds: Annotated[int | None, typer.Option(help="seeds of each; default: the study's")] = None,
    attack: Annotated[str | None, typer.Option(help=f"{ATTACK_HELP}; default: the study's")] = None,
    samples: Annotated[int | None, typer.Option(help="test images; default: the study's")] = None,
    address: Address = None,
) -> None:
    """Train the best configurations of a study again with fresh seeds and attack them on the test set."""
    from orchestrator.journal import Journal
    from orchestrator.run import run_study
    from search_spaces.study import parse_study

    study = Journal.open(folder).study()
    given = {"top": top, "seeds": seeds, "attack": attack, "samples": samples}
    raw = study.to_raw()
    raw["confirm"] |= {name: value for name, value in given.items() if value is not None}
    changed = parse_study(raw)
    raise typer.Exit(run_study(changed, folder.absolute().parent, address, _console(), search=False))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")]) -> None:
    """Write report.html and the figures of a study anew, whatever state it is in."""
    from orchestrator.journal import Journal
    from orchestrator.report.page import write_report

    print(write_report(Journal.open(folder).folder))


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the study's driver ends")] = False,
) -> None:
    """Show a study, running or not, from any terminal that sees its folder."""
    from orchestrator.status import show_status

    show_status(folder, _console(), follow=follow)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="study folders")], format: Format = "table"
) -> None:
    """Rank the confirmed results of several studies; other protocols are shown apart, with the reason."""
    from orchestrator.compare import compare as compare_studies

    compare_studies(folders, format, _console())


@app.command()
def sync(folder: Annotated[Path, typer.Argument(help="a study folder, e.g. runs/quickstart")]) -> None:
    """Bring MLflow up to date with a study's journal."""
    from orchestrator import tracking
    from orchestrator.journal import Journal
    from orchestrator.run import only_driver

    journal = Journal.open(folder)
    uri = tracking.tracking_uri(journal.study())
    tracking.check_reachable(uri)
    with only_driver(journal.folder):  # a driver does it by itself; both at once would make some runs twice
        tracking.sync(journal, uri)
    print(f"{uri} is up to date")


@app.command()
def train(
    words: Annotated[list[str] | None, typer.Argument(metavar="[EXPERIMENT.yaml] [KEY=VALUE]...")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="default: runs/<digest of the experiment>")] = None,
    data_dir: DataDir = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads")] = None,
) -> None:
    """Train once, in this process: no Ray, no tracking, the same records and checkpoints."""
    from trainers.__main__ import main as train_main

    arguments = list(words or [])
    if data_dir is not None:
        arguments.append(f"data.directory={data_dir.absolute()}")
    arguments += ["--run-dir", str(run_dir)] if run_dir else []
    arguments += ["--threads", str(threads)] if threads else []
    raise typer.Exit(train_main(arguments))


@app.command()
def evaluate(
    path: Annotated[
        Path | None,
        typer.Argument(help="a run folder, a checkpoint folder, or a file of weights that others made (with --model)"),
    ] = None,
    attack: Annotated[str, typer.Option(help=ATTACK_HELP)] = "autoattack",
    samples: Annotated[int, typer.Option("-n", "--samples", help="test images")] = 1000,
    epsilon: Annotated[
        str | None, typer.Option(help="e.g. 8/255; default: the experiment's, or what is usual for --data")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the attack")] = 0,
    shard: Annotated[int, typer.Option(help="images per shard, part of the protocol")] = 500,
    batch_size: Annotated[int, typer.Option(help="images per attack batch, part of the protocol")] = 250,
    checkpoint: Annotated[
        str | None, typer.Option(help="of a run folder: best (default), last, or both and the gap between them")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="not ours: an architecture that the weights fit, or path/to/file.py:factory")
    ] = None,
    model_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="parameter of --model, e.g. width=16")
    ] = None,
    data: Annotated[str | None, typer.Option(help="with --model: the data set; digits:8 for digits at 8x8")] = None,
    normalization: Annotated[
        str | None, typer.Option(help="with --model: before the network, standard, half, none, or checkpoint")
    ] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="execute the file that --model names")] = False,
    output: Annotated[Path | None, typer.Option(help="write the flags of every image here (JSON); resumable")] = None,
    data_dir: DataDir = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads")] = None,
) -> None:
    """Attack a model on the test set, attack by attack, in this process: a run of ours, or anyone's weights."""
    from orchestrator.evaluate import evaluate_subjects, settings_of
    from orchestrator.subjects import choose_subjects

    settings = settings_of(attack=attack, samples=samples, seed=seed, shard=shard, batch_size=batch_size)
    subjects = choose_subjects(
        path, rule=checkpoint, model=model, model_options=model_option or [], data=data, normalization=normalization,
        allow_code=allow_code, data_dir=data_dir,
    )  # fmt: skip
    evaluate_subjects(subjects, settings, epsilon=epsilon, output=output, threads=threads, console=_console())


@app.command()
def lens(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]CHECKPOINT...", help="run folders, checkpoint folders, files of weights"),
    ] = None,
    attack: Annotated[
        str, typer.Option(help="with commas: pgd20, kl20, fab-t, … (a wrong name lists all); each on every image")
    ] = "pgd20,pgd20-t,kl20,cw,apgd-ce,apgd-dlr",
    samples: Annotated[int, typer.Option("-n", "--samples", help="test images")] = 1000,
    epochs: Annotated[
        str | None, typer.Option(help="stored epochs of run folders to follow: all, or 1,5,30 (see keep_every)")
    ] = None,
    epsilon: Annotated[str | None, typer.Option(help="e.g. 8/255; default: the evaluation's, if all agree")] = None,
    seed: Annotated[int, typer.Option(help="of the attacks")] = 0,
    shard: Annotated[int, typer.Option(help="images per shard, part of the protocol")] = 500,
    batch_size: Annotated[int, typer.Option(help="images per attack batch, part of the protocol")] = 250,
    checkpoint: Annotated[str | None, typer.Option(help="of run folders: best (default) or last")] = None,
    model: Annotated[str | None, typer.Option(help="of the files of weights, as for evaluate")] = None,
    model_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="parameter of --model, e.g. width=16")
    ] = None,
    data: Annotated[str | None, typer.Option(help="the data set; for checkpoints of ours it is known")] = None,
    normalization: Annotated[str | None, typer.Option(help="with --model, as for evaluate")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="execute the file that --model names")] = False,
    output: Annotated[Path, typer.Option(help="folder of the page, figures, tables; resumable")] = Path("lens"),
    address: Annotated[
        str | None, typer.Option(help="shard over this Ray cluster; local starts one; default: this process")
    ] = None,
    track: Annotated[bool, typer.Option(help="log metrics, figures and tables to MLflow")] = True,
    data_dir: DataDir = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads, of each shard")] = None,
) -> None:
    """See networks through their energies: the same attacks on all, then figures, tables and a page."""
    from orchestrator.lens.networks import Foreign, choose_networks
    from orchestrator.lens.verb import look

    foreign = Foreign(model, tuple(model_option or ()), data, normalization, allow_code)
    networks = choose_networks(checkpoints or [], rule=checkpoint, foreign=foreign, data_dir=data_dir)
    look(
        networks, attack=attack, samples=samples, epsilon=epsilon, seed=seed, shard=shard, batch_size=batch_size,
        epochs=epochs, data_dir=data_dir, address=address, threads=threads, output=output, track=track,
        console=_console(),
    )  # fmt: skip


@app.command()
def subsets(
    checkpoint: Annotated[Path, typer.Argument(help="the reference: a run folder or checkpoint folder of ours")],
    output: Annotated[Path, typer.Option(help="the file (JSON) that data.subset.file then names")] = Path(
        "subsets.json"
    ),
    rule: Annotated[str | None, typer.Option("--checkpoint", help="of a run folder: best (default) or last")] = None,
    seed: Annotated[int, typer.Option(help="of the random subset")] = 0,
    batch_size: Annotated[int, typer.Option(help="images at a time")] = 500,
    data_dir: DataDir = None,
) -> None:
    """Name the training images of high and low energy, misclassified ones and random ones, to train without them."""
    from orchestrator.lens.subsets import write_subsets

    write_subsets(
        checkpoint, rule=rule, output=output, seed=seed, batch_size=batch_size, data_dir=data_dir, console=_console()
    )


@app.command()
def generate(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]CHECKPOINT...", help="run folders, checkpoint folders, files of weights"),
    ] = None,
    init: Annotated[str, typer.Option(help="with commas: pca, local_pca, gaussian, noise")] = "pca",
    per_class: Annotated[int, typer.Option(help="images of each class")] = 10,
    classes: Annotated[str | None, typer.Option(help="with commas, from 0; default: all")] = None,
    steps: Annotated[int, typer.Option(help="of the dynamics, at most")] = 500,
    step_size: Annotated[float, typer.Option(help="η")] = 0.025,
    inertia: Annotated[float, typer.Option(help="ζ, from 0 to below 1")] = 0.8,
    noise: Annotated[float, typer.Option(help="standard deviation in each step, in pixels of [0,1]")] = 0.001,
    adaptive_stop: Annotated[
        bool, typer.Option("--adaptive-stop", help="stop a chain at the energy of its class's training images")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="of --adaptive-stop, in standard deviations of that energy")] = 0.25,
    variance: Annotated[float | None, typer.Option(help="share that PCA keeps; default: 0.99, local 0.95")] = None,
    spread: Annotated[
        float | None, typer.Option(help="κ of PCA starts, in standard deviations; default: WEAT's, local 0.354")
    ] = None,
    neighbors: Annotated[int, typer.Option(help="images that local PCA looks at")] = 200,
    inception: Annotated[Path | None, typer.Option(help="torch-fidelity's Inception weights: IS, FID, KID")] = None,
    alexnet: Annotated[Path | None, typer.Option(help="torchvision's AlexNet weights: LPIPS")] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="a run folder whose network stands in for Inception: FID-clf and the like")
    ] = None,
    seed: Annotated[int, typer.Option(help="of starts and noise")] = 0,
    shard: Annotated[int, typer.Option(help="images that share their random numbers; decides what comes out")] = 500,
    checkpoint: Annotated[str | None, typer.Option(help="of run folders: best (default) or last")] = None,
    model: Annotated[str | None, typer.Option(help="of the files of weights, as for evaluate")] = None,
    model_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="parameter of --model, e.g. width=16")
    ] = None,
    data: Annotated[str | None, typer.Option(help="the data set; for checkpoints of ours it is known")] = None,
    normalization: Annotated[str | None, typer.Option(help="with --model, as for evaluate")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="execute the file that --model names")] = False,
    output: Annotated[Path, typer.Option(help="folder of images, figures and table; resumable")] = Path("generated"),
    address: Annotated[
        str | None, typer.Option(help="shard over this Ray cluster; local starts one; default: this process")
    ] = None,
    track: Annotated[bool, typer.Option(help="log metrics and figures to MLflow")] = True,
    data_dir: DataDir = None,
    threads: Annotated[int, typer.Option(help="CPU threads, of each shard")] = 1,
) -> None:
    """Let classifiers draw: Langevin dynamics on E(x,y) from starts of a class, with figures and metrics."""
    from orchestrator.generation.verb import Judges, create, number_of_classes, recipes
    from orchestrator.lens.networks import Foreign, choose_networks

    foreign = Foreign(model, tuple(model_option or ()), data, normalization, allow_code)
    networks = choose_networks(checkpoints or [], rule=checkpoint, foreign=foreign, data_dir=data_dir)
    wanted = recipes(
        init, classes, number_of_classes(networks), per_class=per_class, seed=seed, shard=shard, variance=variance,
        spread=spread, neighbors=neighbors, steps=steps, step_size=step_size, inertia=inertia, noise=noise,
        tolerance=tolerance if adaptive_stop else None,
    )  # fmt: skip
    create(
        networks, wanted, Judges(inception, alexnet, classifier), address=address, threads=threads, output=output,
        track=track, console=_console(),
    )  # fmt: skip


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="one method, in full")] = None, format: Format = "table"
) -> None:
    """The training methods: slots, parameters, cost, source."""
    from orchestrator.listing import print_method, print_methods

    print_method(name, format) if name else print_methods(format)


@app.command()
def spaces(
    name: Annotated[str | None, typer.Argument(help="one study, in full")] = None, format: Format = "table"
) -> None:
    """The studies that ship with this package."""
    from orchestrator.listing import print_space, print_spaces

    print_space(name) if name else print_spaces(format)


@app.command()
def validate(files: Annotated[list[str], typer.Argument(help="study files, or names of shipped studies")]) -> None:
    """Check study files completely, every corner of their spaces included."""
    from search_spaces.loader import load_study

    for file in files:
        study = load_study(file)
        for notice in study.notices:
            print(f"{file}: note: {notice}")
        print(f"{file}: valid ({study.name}, {len(study.space)} dimensions, {study.trials} trials)")


@app.command()
def doctor(
    study: Annotated[str | None, typer.Argument(help="a study whose data must be there")] = None,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
) -> None:
    """Check what a study needs: Python, torch, GPUs, Ray, MLflow, disk, data; on a cluster, on each node."""
    from orchestrator.doctor import examine
    from search_spaces.loader import load_study

    loaded = load_study(study) if study else None
    raise typer.Exit(OK if examine(address, storage, data_dir, loaded, _console()) else ENVIRONMENT)


def main(arguments: list[str] | None = None) -> int:
    """Entry point: runs a verb and turns what went wrong into one message and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        result: Any = app(args=words, prog_name="orchestrator", standalone_mode=False)
        code = result if isinstance(result, int) else OK
    except InvalidInput as error:
        if debug:
            raise
        print(f"error: {error}" if len(error.problems) == 1 else f"errors:\n{error}", file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except ConnectionError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = ENVIRONMENT
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        code = _usage_error(error, debug)
    if arguments is None:
        sys.exit(code)
    return code


def _usage_error(error: Exception, debug: bool) -> int:
    """Show a wrong option or verb, or a full disk, in one line; anything else is our own bug."""
    show = getattr(error, "show", None)  # typer's own errors: a wrong option, a missing argument
    if show is not None:
        show()
        return BAD_INPUT
    if debug:
        raise error
    if disk.is_full(error):
        print(f"error: the disk is full ({error}); free some space and resume", file=sys.stderr)
        return ENVIRONMENT
    print(f"internal error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
    return SOME_FAILED


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


if __name__ == "__main__":
    main()
