"""Verbs about single networks: train one; attack ours or anyone's, see them through their energies, let them draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.options import ATTACK_HELP, DataDir, plain_console
from trainers.generation.settings import (
    LOCAL_SPREAD,
    LOCAL_VARIANCE,
    PCA_VARIANCE,
    TOLERANCE,
    Dynamics,
    StartSettings,
)

Networks = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=]CHECKPOINT...", help="run folders, checkpoint folders, files of weights"),
]
Checkpoint = Annotated[str | None, typer.Option(help="of run folders: best (default) or last")]
Model = Annotated[
    str | None, typer.Option(help="not ours: an architecture that the weights fit, or path/to/file.py:factory")
]
ModelOptions = Annotated[
    list[str] | None, typer.Option("--model-option", metavar="NAME=VALUE", help="parameter of --model, e.g. width=16")
]
Data = Annotated[str | None, typer.Option(help="with --model: the data set; digits:8 for digits at 8x8")]
Normalization = Annotated[
    str | None, typer.Option(help="with --model: before the network, standard, half, none, or checkpoint")
]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="execute the file that --model names")]
Cluster = Annotated[
    str | None, typer.Option("--address", help="shard over this Ray cluster; local starts one; default: this process")
]


def train(
    words: Annotated[list[str] | None, typer.Argument(metavar="[EXPERIMENT.yaml] [KEY=VALUE]...")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="default: runs/<digest of the experiment>")] = None,
    data_dir: DataDir = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Train once, in this process: no Ray, no tracking, the same records and checkpoints."""
    from trainers.__main__ import main as train_main

    arguments = list(words or [])
    arguments += ["--data-dir", str(data_dir)] if data_dir else []
    arguments += ["--run-dir", str(run_dir)] if run_dir else []
    arguments += ["--threads", str(threads)] if threads else []
    raise typer.Exit(train_main(arguments))


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
    fast: Annotated[
        bool, typer.Option("--fast", help="search in bfloat16, judge in float32: quicker on GPUs, an upper bound")
    ] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="of a run folder: best (default), last, or both and the gap between them")
    ] = None,
    model: Model = None,
    model_option: ModelOptions = None,
    data: Data = None,
    normalization: Normalization = None,
    allow_code: AllowCode = False,
    output: Annotated[Path | None, typer.Option(help="write the flags of every image here (JSON); resumable")] = None,
    data_dir: DataDir = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Attack a model on the test set, attack by attack, in this process: a run of ours, or anyone's weights."""
    from orchestrator.evaluation.subjects import Foreign, choose_subjects
    from orchestrator.evaluation.verb import evaluate_subjects, settings_of

    settings = settings_of(attack=attack, samples=samples, seed=seed, shard=shard, batch_size=batch_size)
    foreign = Foreign(model, tuple(model_option or ()), data, normalization, allow_code)
    subjects = choose_subjects(path, checkpoint, foreign, data_dir)
    evaluate_subjects(
        subjects, settings, epsilon=epsilon, fast=fast, output=output, threads=threads,
        console=plain_console(),
    )  # fmt: skip


def lens(
    paths: Networks = None,
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
    checkpoint: Checkpoint = None,
    model: Model = None,
    model_option: ModelOptions = None,
    data: Data = None,
    normalization: Normalization = None,
    allow_code: AllowCode = False,
    output: Annotated[Path, typer.Option(help="folder of the page, figures, tables; resumable")] = Path("lens"),
    address: Cluster = None,
    track: Annotated[bool, typer.Option(help="log metrics, figures and tables to MLflow")] = True,
    data_dir: DataDir = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, of each shard")] = None,
) -> None:
    """See networks through their energies: the same attacks on all, then figures, tables and a page."""
    from orchestrator.evaluation.subjects import Foreign
    from orchestrator.lens.networks import choose_networks
    from orchestrator.lens.verb import look

    foreign = Foreign(model, tuple(model_option or ()), data, normalization, allow_code)
    networks = choose_networks(paths or [], checkpoint=checkpoint, foreign=foreign, data_dir=data_dir)
    look(
        networks, attack=attack, samples=samples, epsilon=epsilon, seed=seed, shard=shard, batch_size=batch_size,
        epochs=epochs, data_dir=data_dir, address=address, threads=threads, output=output, track=track,
        console=plain_console(),
    )  # fmt: skip


def subsets(
    reference: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="the reference: a run folder or checkpoint folder of ours")
    ],
    output: Annotated[Path, typer.Option(help="the file (JSON) that data.subset.file then names")] = Path(
        "subsets.json"
    ),
    checkpoint: Checkpoint = None,
    seed: Annotated[int, typer.Option(min=0, help="of the random subset")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time")] = 500,
    data_dir: DataDir = None,
) -> None:
    """Name the training images of high and low energy, misclassified ones and random ones, to train without them."""
    from orchestrator.lens.subsets import write_subsets

    write_subsets(
        reference,
        checkpoint=checkpoint,
        output=output,
        seed=seed,
        batch_size=batch_size,
        data_dir=data_dir,
        console=plain_console(),
    )


def generate(
    paths: Networks = None,
    study: Annotated[
        str | None, typer.Option(help="a file with these options by name, or inits_and_models; options go over it")
    ] = None,
    init: Annotated[str | None, typer.Option(help="with commas: pca (default), local_pca, gaussian, noise")] = None,
    per_class: Annotated[int | None, typer.Option(help="images of each class; default: 10")] = None,
    classes: Annotated[str | None, typer.Option(help="with commas, from 0; default: all")] = None,
    steps: Annotated[int | None, typer.Option(help=f"of the dynamics, at most; default: {Dynamics.steps}")] = None,
    step_size: Annotated[float | None, typer.Option(help=f"η; default: {Dynamics.step_size}")] = None,
    inertia: Annotated[float | None, typer.Option(help=f"ζ, from 0 to below 1; default: {Dynamics.inertia}")] = None,
    noise: Annotated[
        float | None,
        typer.Option(help=f"standard deviation of a step, in pixels of [0,1]; default: {Dynamics.noise}"),
    ] = None,
    adaptive_stop: Annotated[
        bool | None, typer.Option(help="stop a chain at the energy of its class's training images; default: no")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help=f"of --adaptive-stop, in deviations of that energy; default: {TOLERANCE}"),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(help="the gradient: minutes first, paid back by thousands of images; default: no"),
    ] = None,
    variance: Annotated[
        float | None, typer.Option(help=f"share that PCA keeps; default: {PCA_VARIANCE}, local {LOCAL_VARIANCE}")
    ] = None,
    spread: Annotated[
        float | None,
        typer.Option(help=f"κ of PCA, in standard deviations; default: WEAT's, local {LOCAL_SPREAD}"),
    ] = None,
    neighbors: Annotated[
        int | None, typer.Option(help=f"images that local PCA looks at; default: {StartSettings.neighbors}")
    ] = None,
    inception: Annotated[Path | None, typer.Option(help="torch-fidelity's Inception weights: IS, FID, KID")] = None,
    alexnet: Annotated[Path | None, typer.Option(help="torchvision's AlexNet weights: LPIPS")] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="a run folder whose network stands in for Inception: FID-clf and the like")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of starts and noise; default: 0")] = None,
    shard: Annotated[
        int | None, typer.Option(help="images that share their random numbers; decides what comes out; default: 500")
    ] = None,
    checkpoint: Checkpoint = None,
    model: Model = None,
    model_option: ModelOptions = None,
    data: Data = None,
    normalization: Normalization = None,
    allow_code: AllowCode = False,
    output: Annotated[Path, typer.Option(help="folder of images, figures and table; resumable")] = Path("generated"),
    address: Cluster = None,
    track: Annotated[bool, typer.Option(help="log metrics and figures to MLflow")] = True,
    data_dir: DataDir = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads, of each shard")] = 1,
) -> None:
    """Let classifiers draw: Langevin dynamics on E(x,y) from starts of a class, with figures and metrics."""
    from orchestrator.evaluation.subjects import Foreign
    from orchestrator.generation.judging import Judges
    from orchestrator.generation.options import load_generation
    from orchestrator.generation.verb import create, number_of_classes, samplings
    from orchestrator.lens.networks import choose_networks

    options = {
        "init": init.split(",") if init else None, "classes": classes.split(",") if classes else None,
        "per_class": per_class, "steps": steps, "step_size": step_size, "inertia": inertia, "noise": noise,
        "adaptive_stop": adaptive_stop, "tolerance": tolerance, "compile": compile, "variance": variance,
        "spread": spread, "neighbors": neighbors, "inception": inception, "alexnet": alexnet,
        "classifier": classifier, "seed": seed, "shard": shard,
    }  # fmt: skip
    settings = load_generation(study, {name: value for name, value in options.items() if value is not None})
    foreign = Foreign(model, tuple(model_option or ()), data, normalization, allow_code)
    words = paths or [f"{name}={path}" for name, path in settings.networks.items()]
    networks = choose_networks(words, checkpoint=checkpoint, foreign=foreign, data_dir=data_dir)
    create(
        networks, samplings(settings, number_of_classes(networks)),
        Judges(settings.inception, settings.alexnet, settings.classifier), address=address, threads=threads,
        output=output, track=track, console=plain_console(),
    )  # fmt: skip
