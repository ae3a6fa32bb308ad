"""What a study would do, before anything starts: trials, cost, disk, concurrency and what limits it. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster import local_capacity
from orchestrator.joining import address_in_use
from orchestrator.tracking import tracking_uri
from search_spaces.study import Resources, Study
from trainers import catalog
from trainers.branching import branching_epochs
from trainers.catalog.attacks import evaluation_passes
from trainers.config import Experiment

# Rates that the estimates assume; a real run prints what it takes.
CPU_CORE_GFLOPS = 40.0
GPU_GFLOPS = 15_000.0
MONITOR_PASSES = 24


@dataclass(frozen=True)
class Cost:
    """One run: passes per training image, floating-point work in TFLOP, bytes on disk."""

    passes: int
    tflop: float
    disk: float


def cost_of(experiment: Experiment) -> Cost:
    """The cost of training once, monitoring included."""
    gigaflop, parameters = model_size(experiment)
    train = experiment.data.num_train
    watched = experiment.data.holdout + 2 * min(experiment.evaluation.probe_samples, train)
    passes = experiment.training_passes
    work = experiment.epochs * (train * passes + watched * MONITOR_PASSES) * gigaflop / 1000
    # Weights, momentum and any moving average, 4 bytes each.
    kept = 2 if experiment.optimizer.ema_decay is None else 3
    return Cost(passes, work, disk=_checkpoints(experiment) * kept * 4 * parameters)


def _checkpoints(experiment: Experiment) -> int:
    """How many a run leaves: the two newest, those of `keep_every`, and the best if it is none of them."""
    epochs = range(experiment.epochs)
    left = {*epochs[-2:], *filter(experiment.keeps, epochs)}
    return min(len(left) + 1, experiment.epochs)


def model_size(experiment: Experiment) -> tuple[float, float]:
    """(GFLOP of one forward of one image, number of parameters), scaled from the catalog's reference size."""
    model = catalog.MODELS[experiment.model.name]

    def relative(name: str, offset: int = 0) -> float:
        if name not in model.parameters:
            return 1.0
        return float((experiment.model.parameters[name] - offset) / (model.parameters[name].default - offset))

    width = (relative("width") * relative("widen_factor")) ** 2
    # Four of a wide network's layers are outside of its blocks.
    depth = relative("blocks_per_stage") * relative("depth", 4)
    pixels = (experiment.data.size / 32 / relative("stem_stride")) ** 2
    return model.gigaflop * width * depth * pixels, model.millions * 1e6 * width * depth


def method_rows(study: Study) -> Iterator[tuple[str, Cost]]:
    """Every method that the space can reach, once, with its cost."""
    seen = set()
    for experiment in study.experiments:
        if experiment.method.name not in seen:
            seen.add(experiment.method.name)
            yield experiment.method.name, cost_of(experiment)


def print_plan(study: Study, storage: Path, address: str | None) -> None:
    """Print the resolved plan of a study."""
    rows = list(method_rows(study))
    mean = sum(cost.tflop for _, cost in rows) / len(rows)
    resources = study.resources
    workers = study.confirm_resources.workers
    runs = study.trials * study.search.seeds
    confirmations = study.confirm.top * study.confirm.seeds
    print(f"study {study.name} in {storage / study.name}, tracked at {tracking_uri(study)}\n")
    print("space:")
    for dimension in study.space:
        print(f"  {dimension}")
    for notice in study.notices:
        print(f"note: {notice}")
    print("\nmethods:")
    for name, cost in rows:
        print(f"  {name:<14} {cost.passes:>3} passes per image  {_hours(cost.tflop, resources):>12} a run")
    objectives = " and ".join(study.search.objectives)
    print(f"\n{study.trials} trials ({study.search.sampler}, seed {study.search.seed}), maximizing {objectives}")
    seeds = f", mean of {study.search.seeds} seeds" if study.search.seeds > 1 else ""
    print(f"  of the {study.search.checkpoint} epoch{seeds}; at most about {_hours(mean * runs, resources)}")
    for line in shortcuts(study):
        print(f"  {line}")
    evaluation = 0.0
    if confirmations:
        gigaflop, _ = model_size(study.experiments[0])
        tested = confirmations * study.confirm.samples * evaluation_passes(study.confirm.attack) * gigaflop / 1000
        evaluation = tested
        left = study.trials
        for rung in study.confirm.ladder:
            images = 0 if left <= rung.keep else left * study.search.seeds * rung.samples
            climbing = images * evaluation_passes(rung.attack) * gigaflop / 1000
            print(
                f"{rung.attack} on {rung.samples} held-out images leaves {min(left, rung.keep)} of {left} trials, "
                f"at most about {_hours(climbing, resources)}"
            )
            evaluation, left = evaluation + climbing, min(left, rung.keep)
        print(f"{study.confirm.top} configurations x {study.confirm.seeds} seeds confirmed with {workers} workers each")
        print(
            f"  then {study.confirm.attack} on {study.confirm.samples} test images, about {_hours(tested, resources)}"
        )
    total = mean * (runs + confirmations) + evaluation
    disk = max(cost.disk for _, cost in rows) * (runs + confirmations) / 1e9
    print(f"in all about {_hours(total, resources)}, up to {disk:{'.0f' if disk >= 10 else '.2g'}} GB of checkpoints")
    rate = (
        f"{GPU_GFLOPS / 1000:g} TFLOP/s a GPU" if resources.gpus_per_worker else f"{CPU_CORE_GFLOPS:g} GFLOP/s a core"
    )
    print(f"  (estimated at {rate}; a real run tells)\n")
    if address_in_use(address):
        print(f"on the Ray cluster at {address_in_use(address)}; what fits there is known when it is joined")
    else:
        count, limit = local_capacity().concurrent_trials(resources)
        print(f"on a private local Ray: {count} trials at once, limited by {limit}")
        local_capacity().require(resources, "resources")


def shortcuts(study: Study) -> list[str]:
    """What may make a study cheaper than its plan, in words."""
    search, stop = study.search, study.search.stop
    found = []
    if stop.catastrophic:
        found.append("a run stops in the epoch in which it collapses")
    if stop.robust is not None:
        found.append(f"a run stops {stop.robust.patience} epochs after its best once robust overfitting has set in")
    if stop.prune is not None:
        after = f"after {stop.prune.grace_epochs} epochs"
        found.append(f"a run stops that falls behind others of its method ({stop.prune.rule}, {after})")
    if search.share_prefix:
        epochs = branching_epochs(study.experiments)
        branches = f"branching after epoch {', '.join(map(str, epochs))}" if epochs else "but nothing starts late"
        found.append(f"runs share their beginning, {branches}")
    if search.reuse:
        found.append("runs that another study under the same storage has finished are taken over")
    return found


def _hours(tflop: float, resources: Resources) -> str:
    gpu = resources.gpus_per_worker > 0
    seconds = tflop * 1000 / (GPU_GFLOPS if gpu else CPU_CORE_GFLOPS)
    unit = "GPU" if gpu else "core"
    return f"{seconds / 3600:.1f} {unit}-h" if seconds > 3600 else f"{seconds / 60:.1f} {unit}-min"
