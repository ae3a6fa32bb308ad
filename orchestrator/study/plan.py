"""What a study would do, before anything starts: trials, cost, disk, concurrency and what limits it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.cluster.connection import local_capacity
from orchestrator.cluster.joining import checked_address
from orchestrator.study.costs import Cost, attack_tflop, method_costs, rung_costs
from orchestrator.tracking.server import tracking_uri
from search_spaces.study import Resources, Study
from trainers.branching import branching_epochs

# Rates that the estimates assume; a real run prints what it takes.
_CPU_CORE_GFLOPS = 40.0
_GPU_GFLOPS = 15_000.0


def print_plan(study: Study, storage: Path, address: str | None) -> None:
    """Print a study as resolved. Raises InvalidInput for what is no address of Ray, or if no run fits here."""
    costs = method_costs(study)
    print(f"study {study.name} in {storage / study.name}, tracked at {tracking_uri(study, storage)}\n")
    for part in (
        _space(study), _methods(study, costs), _search(study, costs), _confirmation(study), _total(study, costs)
    ):  # fmt: skip
        for line in part:
            print(line)
    print()
    _print_place(study, address)


def _space(study: Study) -> Iterator[str]:
    yield "space:"
    yield from (f"  {dimension}" for dimension in study.space)
    yield from (f"note: {notice}" for notice in study.notices)


def _methods(study: Study, costs: Mapping[str, Cost]) -> Iterator[str]:
    yield "\nmethods:"
    for name, cost in costs.items():
        yield f"  {name:<14} {cost.passes:>3} passes per image  {_hours(cost.tflop, study.resources):>12} a run"


def _search(study: Study, costs: Mapping[str, Cost]) -> Iterator[str]:
    search = study.search
    tflop = _mean_tflop(costs) * study.trials * search.seeds
    seeds = f", mean of {search.seeds} seeds" if search.seeds > 1 else ""
    yield (
        f"\n{study.trials} trials ({search.sampler}, seed {search.seed}), maximizing {' and '.join(search.objectives)}"
    )
    often = ", if every method comes equally often" if len(costs) > 1 else ""
    yield f"  of the {search.checkpoint} epoch{seeds}; about {_hours(tflop, study.resources)}{often}"
    yield from (f"  {line}" for line in _shortcuts(study))


def _shortcuts(study: Study) -> Iterator[str]:
    """What may make a study cheaper than its plan."""
    search, stop = study.search, study.search.stop
    if stop.catastrophic:
        yield "a run stops in the epoch in which it collapses"
    if stop.robust is not None:
        yield f"a run stops {stop.robust.patience} epochs after its best once robust overfitting has set in"
    if stop.prune is not None:
        after = f"after {stop.prune.grace_epochs} epochs"
        yield f"a run stops that falls behind others of its method ({stop.prune.rule}, {after})"
    if search.share_prefix:
        epochs = branching_epochs(study.experiments)
        branches = f"branching after epoch {', '.join(map(str, epochs))}" if epochs else "but nothing starts late"
        yield f"runs share their beginning, {branches}"
    if search.reuse:
        yield "runs that another study under the same storage has finished are taken over"


def _confirmation(study: Study) -> Iterator[str]:
    confirm = study.confirm
    if not confirm.top:
        return
    for cost in rung_costs(study):
        rung = cost.rung
        yield (
            f"{rung.attack} on {rung.samples} held-out images leaves {cost.left} of {cost.trials} trials, "
            f"at most about {_hours(cost.tflop, study.resources)}"
        )
    workers = study.confirm_resources.workers
    yield f"{confirm.top} configurations x {confirm.seeds} seeds confirmed with {workers} workers each"
    tested = _hours(_test_tflop(study), study.resources)
    yield f"  then {confirm.attack} on {confirm.samples} test images, about {tested}"


def _total(study: Study, costs: Mapping[str, Cost]) -> Iterator[str]:
    runs = study.trials * study.search.seeds + study.confirm.top * study.confirm.seeds
    tflop = _mean_tflop(costs) * runs + sum(cost.tflop for cost in rung_costs(study)) + _test_tflop(study)
    gigabytes = max(cost.disk for cost in costs.values()) * runs / 1e9
    disk = f"{gigabytes:{'.0f' if gigabytes >= 10 else '.2g'}} GB"
    yield f"in all about {_hours(tflop, study.resources)}, up to {disk} of checkpoints"
    on_gpus = study.resources.gpus_per_worker
    rate = f"{_GPU_GFLOPS / 1000:g} TFLOP/s a GPU" if on_gpus else f"{_CPU_CORE_GFLOPS:g} GFLOP/s a core"
    yield f"  (estimated at {rate}; a real run tells)"


def _print_place(study: Study, address: str | None) -> None:
    cluster = checked_address(address)
    if cluster is not None:
        print(f"on the Ray cluster at {cluster}; what fits there is known when it is joined")
        return
    capacity = local_capacity()
    count, limit = capacity.concurrent_trials(study.resources)
    print(f"on a private local Ray: {count} trials at once, limited by {limit}")
    capacity.require_room(study, search=True)


def _mean_tflop(costs: Mapping[str, Cost]) -> float:
    """The work of one run: the mean over the methods."""
    return sum(cost.tflop for cost in costs.values()) / len(costs)


def _test_tflop(study: Study) -> float:
    """The work of attacking all confirmation runs on the test set."""
    confirm = study.confirm
    return attack_tflop(study, confirm.attack, confirm.top * confirm.seeds * confirm.samples)


def _hours(tflop: float, resources: Resources) -> str:
    gpu = resources.gpus_per_worker > 0
    seconds = tflop * 1000 / (_GPU_GFLOPS if gpu else _CPU_CORE_GFLOPS)
    unit = "GPU" if gpu else "core"
    return f"{seconds / 3600:.1f} {unit}-h" if seconds > 3600 else f"{seconds / 60:.1f} {unit}-min"
