"""`orchestrator evaluate`: runs of ours, weights of others, models of the user's own code, interruptions."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import torch

from orchestrator.cli import main
from orchestrator.evaluation.protocols import protocol_for
from orchestrator.evaluation.shards import Shard, evaluate_shard
from orchestrator.exit_codes import BAD_INPUT, ENVIRONMENT, INTERRUPTED, OK
from search_spaces.study import Confirm
from trainers import checkpoint
from trainers.config import parse
from trainers.data.images import load_splits, training_indices
from trainers.evaluation import ranges
from trainers.evaluation.result import EvaluationResult, ForeignModel
from trainers.records import EpochRecord

PGD = ("--attack", "pgd20,cw", "-n", "40", "--shard", "16", "--batch-size", "16", "--epsilon", "0.06")
WEIGHTS = ("--model", "small", "--model-option", "width=8", "--data", "digits:8", "--normalization", "none")


@pytest.fixture(scope="module")
def run_folder(natural_net, experiment, tmp_path_factory):
    """A run whose best epoch is the second and whose last, the third, has forgotten a little."""
    folder, settings = tmp_path_factory.mktemp("run"), experiment({"model.width": 8})
    worse = copy.deepcopy(natural_net)
    with torch.no_grad():
        worse.network[0].weight *= 1 + torch.randn(worse.network[0].weight.shape, generator=torch.Generator()) / 2
    checkpoint.mark_best(folder, checkpoint.save(folder, settings, natural_net, {}, EpochRecord(1, 0.0, {})))
    checkpoint.save(folder, settings, worse, {}, EpochRecord(2, 0.0, {}))
    return folder


@pytest.fixture
def weights(natural_net, tmp_path):
    torch.save({"state_dict": natural_net.network.state_dict()}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def evaluate(capsys, tmp_path, monkeypatch):
    """`evaluate(*words)` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words):
        code = main(["evaluate", *map(str, words)])
        return code, *capsys.readouterr()

    return called


def refused(evaluate, *words):
    code, _, error = evaluate(*words)
    assert code == BAD_INPUT
    return error


def test_a_run_is_evaluated_at_its_best_epoch_and_printed_with_standard_errors(run_folder, evaluate, tmp_path):
    code, printed, _ = evaluate(run_folder, *PGD, "--output", "flags.json")
    assert printed.splitlines()[0].endswith("on the CPU, 1 thread") or torch.cuda.is_available()
    assert code == OK
    found = EvaluationResult.load(tmp_path / "flags.json")
    attacked = "digits 8x8/test n=40 pgd20,cw ε=0.06 best seed=0 shard=16 batch=16 float32"
    assert found.protocol.key == f"{attacked}; small width=8, 3 epochs, 256 images"
    assert (found.epoch, found.foreign) == (1, None)
    assert (found.flags.start, found.flags.stop) == (0, 40)
    for stage, share in found.accuracies.items():
        error = (share * (1 - share) / 40) ** 0.5
        assert re.search(rf"^{stage} +{100 * share:.2f} ± {100 * error:.2f} %$", printed, re.MULTILINE)
    assert not list(tmp_path.glob("*.partial"))


def test_the_file_says_which_images_of_the_test_set_its_flags_are_of(run_folder, evaluate, natural_net, tmp_path):
    assert evaluate(run_folder, *PGD, "--output", "flags.json")[0] == OK
    written = json.loads((tmp_path / "flags.json").read_text())
    test = load_splits(checkpoint.latest(run_folder).experiment.data).test
    right = natural_net.eval()(test.floats()).argmax(1) == test.labels
    assert len(set(written["images"])) == 40
    assert written["flags"]["standing"]["clean"] == right[written["images"]].tolist()
    held_out = replace(EvaluationResult.load(tmp_path / "flags.json").protocol, split="held-out")
    assert replace(EvaluationResult.load(tmp_path / "flags.json"), protocol=held_out).images == []


def test_best_and_last_share_a_protocol_and_their_gap_is_printed(run_folder, evaluate, tmp_path):
    code, printed, _ = evaluate(run_folder, *PGD, "--checkpoint", "both", "--output", "flags.json")
    assert code == OK
    assert [int(shown) for shown in re.findall(r"^\S+/checkpoints/\S+, epoch (\d)", printed, re.MULTILINE)] == [2, 3]
    best, last = (EvaluationResult.load(tmp_path / f"flags-{name}.json") for name in ("best", "last"))
    assert (best.epoch, last.epoch) == (1, 2)
    assert best.protocol.key.replace(" best ", " last ") == last.protocol.key
    (line,) = re.findall(r"^best \(epoch 2\) - last \(epoch 3\), in points: (.*)$", printed, re.MULTILINE)
    gaps = {stage: float(value) for stage, value in re.findall(r"(\S+) ([+-][\d.]+) ±", line)}
    expected = {stage: 100 * (share - last.accuracies[stage]) for stage, share in best.accuracies.items()}
    assert gaps == pytest.approx(expected, abs=0.005)
    assert gaps["clean"] != 0
    assert evaluate(run_folder, *PGD, "--checkpoint", "last", "--output", "alone.json")[0] == OK
    assert EvaluationResult.load(tmp_path / "alone.json") == last


def test_an_epoch_that_is_best_and_last_has_no_gap(natural_net, experiment, evaluate, tmp_path):
    settings = experiment({"model.width": 8})
    checkpoint.mark_best(tmp_path, checkpoint.save(tmp_path, settings, natural_net, {}, EpochRecord(3, 0.0, {})))
    code, printed, _ = evaluate(tmp_path, *PGD, "--checkpoint", "both", "--output", "out.json")
    assert code == OK
    assert "pgd20 +0.00 ± 0.00" in printed
    assert EvaluationResult.load(tmp_path / "out-last.json").protocol.checkpoint == "last"


def test_a_run_whose_file_of_subsets_is_gone_is_evaluated(run_folder, natural_net, experiment, evaluate, tmp_path):
    file = tmp_path / "subsets.json"
    file.write_text(json.dumps({"subsets": {"some": training_indices(experiment().data)[:20].tolist()}}))
    subset = {"file": str(file), "name": "some", "treatment": "drop"}
    settings = experiment({"model.width": 8, "data.subset": subset})
    saved = checkpoint.save(tmp_path / "run", settings, natural_net, {}, EpochRecord(1, 0.0, {}))
    file.unlink()
    assert evaluate(saved, *PGD, "--output", "gone.json")[0] == OK
    assert evaluate(run_folder, *PGD, "--output", "whole.json")[0] == OK
    assert EvaluationResult.load(tmp_path / "gone.json").flags == EvaluationResult.load(tmp_path / "whole.json").flags
    protocol = protocol_for(settings, Confirm(attack="clean", samples=20), "best", "held-out")
    evaluate_shard(Shard(saved, settings.data, protocol, (0, 20), tmp_path / "run"), 1, 0)
    assert len(list((tmp_path / "run" / "shards").glob("*.json"))) == 1


def test_foreign_weights_get_the_flags_of_the_same_net_as_a_run(run_folder, weights, evaluate, tmp_path):
    assert evaluate(run_folder, *PGD, "--output", "ours.json")[0] == OK
    code, printed, _ = evaluate(weights, *WEIGHTS, *PGD, "--output", "foreign.json")
    assert code == OK
    ours, foreign = (EvaluationResult.load(tmp_path / f"{name}.json") for name in ("ours", "foreign"))
    assert foreign.flags == ours.flags
    assert (foreign.experiment_digest, foreign.epoch) == (None, None)
    assert isinstance(foreign.foreign, ForeignModel)
    assert foreign.foreign.architecture == "small norm=batch stem_stride=1 width=8 normalization=none"
    assert foreign.foreign.weights[:12] in printed
    assert foreign.protocol.checkpoint == "weights"


def test_a_fast_evaluation_says_so_in_its_protocol(run_folder, evaluate, tmp_path):
    code, printed, _ = evaluate(run_folder, *PGD, "--fast", "--output", "fast.json")
    assert code == OK
    assert "bfloat16-search" in printed
    assert evaluate(run_folder, *PGD, "--output", "exact.json")[0] == OK
    fast, exact = (EvaluationResult.load(tmp_path / f"{name}.json") for name in ("fast", "exact"))
    assert fast.protocol.is_fast
    assert fast.protocol.key != exact.protocol.key
    assert fast.flags.standing["clean"] == exact.flags.standing["clean"]


@pytest.mark.parametrize(
    ("written", "kept"), [("0.10", "0.1"), ("6e-2", "0.06"), ("8/255", "8/255"), ("8 / 255", "8/255")]
)
def test_an_epsilon_is_one_protocol_however_it_is_written(written, kept, run_folder, evaluate, tmp_path):
    words = ("--attack", "pgd20", "-n", "10", "--epsilon", written, "--output", "flags.json")
    assert evaluate(run_folder, *words)[0] == OK
    assert EvaluationResult.load(tmp_path / "flags.json").protocol.epsilon == kept


def test_a_model_of_the_users_own_code_is_attacked_and_its_softmax_warned_of(evaluate, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef factory():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))\n"
    )
    words = ("--model", "net.py:factory", "--data", "digits:8", "--attack", "clean", "-n", "20")
    assert "add --allow-code" in refused(evaluate, *words)
    code, printed, _ = evaluate(*words, "--allow-code", "--output", "flags.json")
    assert code == OK
    assert "warning: the output looks like probabilities" in printed
    found = EvaluationResult.load(tmp_path / "flags.json")
    assert "looks like probabilities" in found.warnings[0]
    assert found.foreign.architecture.startswith("net.py:factory ")
    (tmp_path / "net.py").write_text("from torch import nn\ndef factory():\n    return nn.Flatten()\n")
    assert "expected logits [20, 10]" in refused(evaluate, *words, "--allow-code")


def test_a_model_that_hides_its_gradient_is_attacked_by_square_alone(evaluate, tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Hidden(nn.Sequential):\n"
        "    def __init__(self):\n        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n\n"
        "    @torch.no_grad()\n    def forward(self, images):\n        return super().forward(images)\n"
    )
    words = ("--model", "net.py:Hidden", "--allow-code", "--data", "digits:8", "-n", "20", "--attack")
    assert "model: has no gradient at the images" in refused(evaluate, *words, "autoattack")
    code, printed, _ = evaluate(*words, "square")
    assert code == OK
    assert re.search(r"^square +\d", printed, re.MULTILINE)


def test_signs_of_masking_are_printed_and_kept(natural_net, evaluate, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\nfrom trainers.models.small import small\n\n\nclass Saturated(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.network = small(10, 1, width=8)\n\n"
        "    def forward(self, images):\n        return 1e4 * self.network(images)\n"
    )
    torch.save(natural_net.state_dict(), tmp_path / "weights.pt")
    words = ("weights.pt", "--model", "net.py:Saturated", "--allow-code", "--data", "digits:8")
    assert "--normalization: none: a factory takes nothing" in refused(evaluate, *words, "--normalization", "none")
    code, printed, _ = evaluate(*words, *PGD, "--output", "out.json")
    assert code == OK
    (warning,) = EvaluationResult.load(tmp_path / "out.json").warnings
    assert "the gradient of the cross-entropy may be masked" in warning
    assert f"warning: {warning}" in printed


def test_an_interrupted_evaluation_continues_with_the_shards_that_are_left(weights, evaluate, tmp_path, monkeypatch):
    words = (weights, *WEIGHTS, *PGD)
    assert evaluate(*words, "--output", "whole.json")[0] == OK
    attacked, real = [], ranges.evaluate_range

    def interrupted(*arguments, **options):
        attacked.append(arguments[3:5])
        if len(attacked) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(ranges, "evaluate_range", interrupted)
    code, printed, _ = evaluate(*words, "--output", "out.json")
    assert code == INTERRUPTED
    assert "the same command again continues from out.json.partial" in printed
    assert not (tmp_path / "out.json").exists()
    other = ("--epsilon", "0.05")
    assert "out.json.partial was left by another model or protocol" in refused(
        evaluate, *words, *other, "--output", "out.json"
    )
    code, printed, _ = evaluate(*words, "--output", "out.json")
    assert code == OK
    assert "images 0-16 from out.json.partial" in printed
    assert attacked == [(0, 16), (16, 32), (16, 32), (32, 40)]
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    assert not (tmp_path / "out.json.partial").exists()


@pytest.mark.parametrize("words", [(), ("--checkpoint", "both")])
def test_where_the_result_can_not_be_written_nothing_is_computed(words, run_folder, evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "evaluate_range", lambda *_arguments, **_options: pytest.fail("attacked"))
    for name in ("there", "there-best"):
        (tmp_path / name).mkdir()
    assert "is a folder; name a file in it" in refused(evaluate, run_folder, *PGD, *words, "--output", "there")
    (tmp_path / "file").write_text("in the way")
    code, _, error = evaluate(run_folder, *PGD, *words, "--output", "file/flags.json")
    assert (code, error.startswith("error: file: File exists;")) == (ENVIRONMENT, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there", "there-best"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "PATH: is missing"),
        (("weights.pt",), "weights.pt: is a file of weights: say --model"),
        (("weights.pt", "--data", "digits"), "--data: is for models that are not ours: say --model"),
        (("weights.pt", "--allow-code"), "--allow-code: is for models that are not ours"),
        (("weights.pt", "--model", "small"), "--data: is missing; allowed with --model: cifar10"),
        (("weights.pt", *WEIGHTS[:-2]), "--normalization: must be stated: standard"),
        (("weights.pt", *WEIGHTS[:-1], "full"), "--normalization: 'full' is unknown"),
        (("weights.pt", *WEIGHTS, "--model-option", "widht=8"), "model.widht: unknown"),
        (("weights.pt", *WEIGHTS, "--model", "smal"), "unknown model 'smal'. Did you mean small?"),
        (("weights.pt", *WEIGHTS, "--data", "cifar"), "Did you mean cifar10?"),
        (("weights.pt", *WEIGHTS, "--checkpoint", "both"), "--checkpoint: both: is for run folders"),
        (WEIGHTS, "--model: small has no weights of its own"),
        (("RUN", "--checkpoint", "first"), "--checkpoint: unknown checkpoint 'first'"),
        (("RUN/checkpoints/best", "--checkpoint", "last"), "is no run folder"),
        (("nowhere",), "nowhere: no such run folder, checkpoint folder or file of weights"),
        (("RUN", "--attack", "pgd20,cv"), "attack: unknown attack 'cv'. Did you mean cw?"),
        (("RUN", "--epsilon", "0"), "--epsilon: '0': must be above 0"),
        (("RUN", "-n", "0"), "-n: 0: must be at least 1"),
        (("RUN", "--seed", "-1"), "--seed: -1: must not be negative"),
    ],
)
def test_options_that_make_no_sense_are_named(words, message, weights, run_folder, evaluate):
    assert message in refused(evaluate, *(word.replace("RUN", str(run_folder)) for word in words))


def test_of_a_study_one_of_its_runs_is_meant(tmp_path, evaluate):
    (tmp_path / "study" / "trials").mkdir(parents=True)
    assert "is the folder of a study: name one of its runs, e.g." in refused(evaluate, str(tmp_path / "study"))


def test_the_protocol_tells_trainings_of_different_size_apart():
    raw = {"data": "digits", "model": {"name": "small", "width": 8}, "epochs": 3}
    small, same = (protocol_for(parse(raw | {"seed": seed}), Confirm(), "best") for seed in (0, 1))
    assert small == same
    assert small.key.endswith("; small width=8, 3 epochs")
    longer = protocol_for(parse(raw | {"epochs": 4}), Confirm(), "best")
    fewer = protocol_for(parse(raw | {"data": {"train_samples": 500}}), Confirm(), "best")
    assert fewer.key.endswith("; small width=8, 3 epochs, 500 images")
    more = protocol_for(parse(raw | {"data": {"holdout": 100}}), Confirm(), "best")
    assert more.key.endswith("; small width=8, 3 epochs, 1400 images")
    generated = {"data": {"name": "digits", "extra": "/made/up.npz", "extra_fraction": 0.5}}
    assert len({small.digest, longer.digest, protocol_for(parse(raw | generated), Confirm(), "best").digest}) == 3
