"""`orchestrator evaluate`: attack a model in this process, print and keep what stands after each attack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.evaluation.protocols import protocol_for
from orchestrator.evaluation.shards import percent
from orchestrator.evaluation.subjects import Subject
from orchestrator.host import disk
from search_spaces.study import Confirm
from trainers import catalog
from trainers.catalog.attacks import canonical, needs_gradients
from trainers.evaluation.consistency import with_warnings
from trainers.evaluation.result import EXACT, FAST, EvaluationResult, Flags, Protocol, differences
from trainers.pixels import PixelValue
from trainers.problems import InvalidInput

if TYPE_CHECKING:
    from torch import nn

    from trainers.data.images import ImageSet


def settings_of(*, attack: str, samples: int, seed: int, shard: int, batch_size: int) -> Confirm:
    """The options of the command line as those of a confirmation. Raises InvalidInput, naming the option."""
    for option, value in (("-n", samples), ("--shard", shard), ("--batch-size", batch_size)):
        if value < 1:
            raise InvalidInput.single(option, f"{value}: must be at least 1")
    if seed < 0:
        raise InvalidInput.single("--seed", f"{seed}: must not be negative")
    return Confirm(attack=canonical(attack), samples=samples, seed=seed, shard=shard, batch_size=batch_size)


def protocol_epsilon(option: str | None) -> str | None:
    """`--epsilon` as protocols have it, where 0.10 is 0.1 and 8/255 stays. Raises InvalidInput for what it can't be."""
    if option is None:
        return None
    try:
        value = PixelValue(option)
    except ValueError as error:
        raise InvalidInput.single("--epsilon", str(error)) from error
    if not 0 < value <= 1:
        raise InvalidInput.single("--epsilon", f"{option!r}: must be above 0 and at most 1")
    return str(value.plain())


def evaluate_subjects(
    subjects: list[Subject], settings: Confirm, *, epsilon: str | None, fast: bool = False, output: Path | None,
    threads: int | None, console: Console,
) -> None:  # fmt: skip
    """Attack one model, or the best and the last epoch of a run under the same protocol, and print the gap.

    `fast` searches in bfloat16. With `output`, the flags of finished shards survive an interruption in a `.partial`
    file beside it.
    """
    epsilon = protocol_epsilon(epsilon)
    files = [_file_of(output, subject, of=len(subjects)) for subject in subjects]
    for wanted in filter(None, files):
        disk.check_file(wanted, "--output")
    if threads:
        import torch

        torch.set_num_threads(threads)
    evaluations: list[EvaluationResult] = []
    for subject, file in zip(subjects, files, strict=True):
        found = protocol_for(subject.experiment, settings, subject.protocol_checkpoint)
        protocol = replace(
            found,
            epsilon=epsilon or found.epsilon,
            precision=FAST if fast else EXACT,
            training=found.training if subject.foreign is None else "",  # nobody knows how the others were trained
        )
        if evaluations and evaluations[0].epoch == subject.epoch:
            evaluation = replace(evaluations[0], protocol=protocol)
            if file is not None:
                evaluation.save(file)
        else:
            evaluation = _evaluate(subject, protocol, file, console)
        evaluations.append(evaluation)
    if len(evaluations) > 1:
        _print_gap(evaluations[0], evaluations[1], console)


def _file_of(output: Path | None, subject: Subject, of: int) -> Path | None:
    """Where the flags of one of several models go."""
    if output is None or of == 1:
        return output
    return output.with_name(f"{output.stem}-{subject.protocol_checkpoint}{output.suffix}")


def _evaluate(subject: Subject, protocol: Protocol, output: Path | None, console: Console) -> EvaluationResult:
    """Attack one model from where an interruption left it, range by range; print the result and write it."""
    from trainers.evaluation.classifier import check_classifier
    from trainers.evaluation.ranges import evaluation_images
    from trainers.ranks import Ranks
    from trainers.reporting import on_device

    device = Ranks.current().device
    model = subject.load().to(device)
    images = evaluation_images(subject.experiment.data, protocol.samples).to(device)
    num_classes = catalog.DATASETS[subject.experiment.data.name].num_classes
    warnings = check_classifier(
        model, images.floats(0, protocol.batch_size), num_classes, gradients=needs_gradients(protocol.attack)
    )
    console.print(f"{subject.source} {on_device(device)}\n{protocol.key}", soft_wrap=True)
    unfinished = None if output is None else output.with_name(output.name + ".partial")
    evaluation = None if unfinished is None else _left_in(unfinished, subject, protocol, console)
    for start, stop in protocol.ranges():
        if evaluation is not None and stop <= evaluation.flags.stop:
            continue
        try:
            flags = _attack(model, images, protocol, start, stop, console)
        except KeyboardInterrupt:
            if evaluation is not None and unfinished is not None:
                console.print(f"the same command again continues from {unfinished}", soft_wrap=True)
            raise
        flags = flags if evaluation is None else evaluation.flags.merged(flags)
        evaluation = EvaluationResult(
            protocol, subject.experiment_digest, subject.epoch, flags, subject.foreign, warnings
        )
        counts = "  ".join(f"{stage} {sum(standing)}" for stage, standing in flags.standing.items())
        console.print(f"images 0-{stop}  {counts}", soft_wrap=True)
        if unfinished is not None:
            evaluation.save(unfinished)
    assert evaluation is not None
    evaluation = with_warnings(evaluation)
    _print_result(evaluation, console)
    if output is not None and unfinished is not None:
        evaluation.save(output)
        unfinished.unlink()
        console.print(f"flags of every image: {output}", soft_wrap=True)
    return evaluation


def _attack(model: nn.Module, images: ImageSet, protocol: Protocol, start: int, stop: int, console: Console) -> Flags:
    """Attack one range; the terminal shows which stage it is at."""
    from trainers.evaluation.ranges import evaluate_range

    with console.status("") as status:
        return evaluate_range(
            model, images, protocol, start, stop,
            progress=lambda stage: status.update(f"images {start}-{stop}: {stage}"),
        )  # fmt: skip


def _left_in(unfinished: Path, subject: Subject, protocol: Protocol, console: Console) -> EvaluationResult | None:
    """What an interrupted evaluation left, if any; refuses what another model or protocol left."""
    if not unfinished.exists():
        return None
    found = EvaluationResult.load(unfinished)
    if (found.protocol, found.subject) != (protocol, (subject.experiment_digest, subject.epoch, subject.foreign)):
        raise InvalidInput.single(
            "--output", f"{unfinished} was left by another model or protocol ({found.protocol.key}): remove it, or "
            "give another file"
        )  # fmt: skip
    console.print(f"images 0-{found.flags.stop} from {unfinished}", soft_wrap=True)
    return found


def _print_result(evaluation: EvaluationResult, console: Console) -> None:
    errors = evaluation.standard_errors
    width = max(map(len, errors))
    for stage, share in evaluation.accuracies.items():
        console.print(f"{stage:<{width}}  {percent(share, errors[stage]):>16}")
    console.print(f"robust accuracy {percent(evaluation.robust_accuracy, list(errors.values())[-1])}")
    for warning in evaluation.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def _print_gap(best: EvaluationResult, last: EvaluationResult, console: Console) -> None:
    assert best.epoch is not None
    assert last.epoch is not None
    gaps = "  ".join(
        f"{stage} {100 * share:+.2f} ± {100 * error:.2f}" for stage, (share, error) in differences(best, last).items()
    )
    console.print(f"best (epoch {best.epoch + 1}) - last (epoch {last.epoch + 1}), in points: {gaps}", soft_wrap=True)
