"""What training and attacking cost, before anything runs: passes, floating-point work, disk. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.study import Rung, Study
from trainers import catalog
from trainers.catalog.attacks import evaluation_passes
from trainers.config import Experiment

_MONITOR_PASSES = 24


@dataclass(frozen=True)
class Cost:
    """One run: passes per training image, floating-point work in TFLOP, bytes on disk."""

    passes: int
    tflop: float
    disk: float


@dataclass(frozen=True)
class RungCost:
    """A rung of the ladder: how many trials reach it, how many it leaves, and its work in TFLOP at most."""

    rung: Rung
    trials: int
    left: int
    tflop: float


def cost_of(experiment: Experiment) -> Cost:
    """The cost of training once, monitoring included."""
    gigaflop, parameters = model_size(experiment)
    train = experiment.data.num_train
    watched = experiment.data.holdout + 2 * min(experiment.evaluation.probe_samples, train)
    passes = experiment.training_passes
    work = experiment.epochs * (train * passes + watched * _MONITOR_PASSES) * gigaflop / 1000
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


def method_costs(study: Study) -> dict[str, Cost]:
    """Every method that the space can reach, with the cost of its dearest run at a corner of the space."""
    found: dict[str, Cost] = {}
    for experiment in study.experiments:
        name, cost = experiment.method.name, cost_of(experiment)
        if name not in found or cost.tflop > found[name].tflop:
            found[name] = cost
    return found


def attack_tflop(study: Study, attack: str, images: int) -> float:
    """The work of attacking so many images; where the space varies the model, of the dearest."""
    gigaflop = max(model_size(experiment)[0] for experiment in study.experiments)
    return images * evaluation_passes(attack) * gigaflop / 1000


def rung_costs(study: Study) -> list[RungCost]:
    """Every rung of a study's ladder; one that has nobody to drop costs nothing. None where nothing is confirmed."""
    costs: list[RungCost] = []
    trials = study.trials
    for rung in study.confirm.ladder if study.confirm.top else ():
        left = min(trials, rung.keep)
        images = (trials > left) * trials * study.search.seeds * rung.samples
        costs.append(RungCost(rung, trials, left, attack_tflop(study, rung.attack, images)))
        trials = left
    return costs
