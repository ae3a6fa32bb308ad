"""What a lens refuses, before anything is measured."""

from __future__ import annotations

import pytest

from orchestrator.exit_codes import BAD_INPUT
from orchestrator.lens import measuring
from tests.orchestrator.lens.conftest import QUICK
from trainers import checkpoint
from trainers.records import EpochRecord


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "CHECKPOINT: is missing"),
        (("nowhere",), "no such run folder"),
        (("{a}", "{a}"), "names two networks"),
        (("x={a}", "x={b}"), "names two networks"),
        (("x y={a}", "X-Y={b}"), "or two files"),
        (("{a}", "--attack", "pgd2"), "Did you mean pgd20?"),
        (("{a}", "--attack", "clean"), "compares images with their adversarial versions"),
        (("{a}", "--epsilon", "2"), "must be above 0 and at most 1"),
        (("{a}", "--epsilon", "8/x"), "--epsilon: '8/x' is not a number"),
        (("{a}/checkpoints/best", "--checkpoint", "last"), "--checkpoint: last: is for run folders, and none is given"),
        (("{a}", "--data", "cifar10"), "the networks are for digits 8x8"),
        (("{a}", "--model", "small"), "no file of weights is given"),
        (("{a}", "--checkpoint", "both"), "Allowed: best, last"),
        (("{a}", "--epochs", "0,2"), "epochs from 1 on"),
        (("{a}", "--epochs", "9"), "has the epochs 1, 2, 3"),
        (("{a}/checkpoints/best", "--epochs", "all"), "none of the networks is a run folder"),
        (("{a}", "-n", "0"), "-n: 0: must be at least 1"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(words, message, runs, lens, tmp_path):
    code, _, error = lens(*(word.format(a=runs / "a", b=runs / "b") for word in words), "--no-track")
    assert code == BAD_INPUT
    assert message in error
    assert not list(tmp_path.iterdir())


def test_networks_of_other_images_or_other_epsilons_are_not_mixed(runs, lens, natural_net, experiment, tmp_path):
    other = experiment({"model.width": 8, "data.size": 16, "evaluation.epsilon": 0.2})
    checkpoint.save(tmp_path / "c", other, natural_net, {}, EpochRecord(0, 0.0, {}))
    code, _, error = lens(runs / "a", tmp_path / "c", *QUICK, "--checkpoint", "last")
    assert code == BAD_INPUT
    assert "different data can't share attacks" in error
    near = experiment({"model.width": 8, "evaluation.epsilon": 0.2})
    checkpoint.save(tmp_path / "d", near, natural_net, {}, EpochRecord(0, 0.0, {}))
    code, _, error = lens(runs / "b", tmp_path / "d", "-n", "4", "--checkpoint", "last", "--no-track")
    assert code == BAD_INPUT
    assert "--epsilon: is missing" in error


def test_nothing_is_measured_for_a_tracker_that_does_not_answer(runs, lens, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(measuring, "measure", None)
    code, _, error = lens(runs / "a", "-n", "4")
    assert code == BAD_INPUT
    assert "no MLflow server answers" in error
