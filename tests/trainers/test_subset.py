"""A subset of the training images left out, or trained on without being attacked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trainers.data.availability import check_available
from trainers.data.batches import TrainingBatches
from trainers.data.digits import decode
from trainers.data.images import cut, load_splits, training_indices
from trainers.data.subset import read_subset, subset_hash
from trainers.evaluation.ranges import evaluation_images, fixed_subset
from trainers.loop import fit
from trainers.models.build import build_model
from trainers.problems import InvalidInput
from trainers.randomness import Noise, generator
from trainers.ranks import Ranks
from trainers.step import build_method, train_step


@pytest.fixture
def indices(experiment):
    """Twenty images of the tiny run's training split."""
    return training_indices(experiment().data)[5:205:10].tolist()


@pytest.fixture
def file(indices, experiment, tmp_path):
    data = experiment().data
    untrained = np.setdiff1d(np.arange(1500), np.concatenate(cut(data, torch.from_numpy(decode(data).train_labels))))[0]
    path = tmp_path / "subsets.json"
    path.write_text(json.dumps({"subsets": {"some": indices, "none": [], "far": [int(untrained)]}}))
    return path


@pytest.fixture
def treated(experiment, file):
    """`treated("drop", {"epochs": 1})`: the tiny run with the subset."""

    def made(treatment, values=(), name="some", path=file):
        return experiment({"data.subset": {"file": str(path), "name": name, "treatment": treatment}, **dict(values)})

    return made


def rows(images):
    return sorted(image.numpy().tobytes() for image in images)


def refusal(call):
    with pytest.raises(InvalidInput) as caught:
        call()
    return str(caught.value)


def test_training_indices_are_where_the_images_come_from(experiment):
    data = experiment().data
    whole = torch.from_numpy(decode(data).train_images)
    assert torch.equal(whole[training_indices(data)], load_splits(data).train.images)


def test_a_dropped_subset_is_gone_and_nothing_else_is(treated, experiment, indices):
    before, after = load_splits(experiment().data), load_splits(treated("drop").data)
    held = dict(zip(training_indices(experiment().data).tolist(), before.train.images, strict=True))
    assert rows(after.train.images) == rows(image for index, image in held.items() if index not in indices)
    assert len(after.train) == len(before.train) - 20
    assert after.train.attacked is None
    assert torch.equal(after.validation.images, before.validation.images)
    assert torch.equal(after.test.images, before.test.images)


def test_an_unattacked_subset_stays_and_is_marked(treated, experiment, indices):
    splits = load_splits(treated("no_perturb").data)
    assert torch.equal(splits.train.images, load_splits(experiment().data).train.images)
    marked = training_indices(experiment().data)[~splits.train.attacked.numpy()]
    assert marked.tolist() == indices
    assert splits.validation.attacked is None


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_mark_follows_its_image_into_the_batches(treated, world_size):
    settings = treated("no_perturb", {"data.augment": False})
    train = load_splits(settings.data).train
    marked = {image.numpy().tobytes() for image in train.images[~train.attacked]}
    met = 0
    for rank in range(world_size):
        for images, _, attacked in TrainingBatches(train, settings, Ranks(rank, world_size, torch.device("cpu"))).epoch(
            3
        ):
            stored = (images * 255).round().byte().permute(0, 2, 3, 1)
            assert [image.numpy().tobytes() not in marked for image in stored] == attacked.tolist()
            met += int((~attacked).sum())
    assert met == 20


def test_generated_images_beside_an_unattacked_subset_are_attacked(treated, tmp_path):
    np.savez(tmp_path / "more.npz", image=np.full((30, 8, 8, 1), 7, np.uint8), label=np.arange(30) % 10)
    extra = {"data.extra": str(tmp_path / "more.npz"), "data.extra_fraction": 0.25, "data.augment": False}
    settings = treated("no_perturb", extra)
    batches = TrainingBatches(load_splits(settings.data).train, settings, Ranks(0, 1, torch.device("cpu")))
    for images, _, attacked in batches.epoch(0):
        generated = (images == 7 / 255).flatten(1).all(1)
        assert generated.sum() == 16
        assert attacked[generated].all()


def test_unattacked_images_reach_the_loss_as_they_are(treated, alone, natural_net, splits):
    images, labels = splits.train.floats(0, 32), splits.train.labels[:32]
    attacked = torch.arange(32) % 4 != 0
    settings = treated("no_perturb", {"method.name": "sat", "attack.steps": 2, "model.width": 8})
    seen = []
    method = build_method(settings)
    natural = natural_net.state_dict()

    def model():
        net = build_model(settings).train()
        net.load_state_dict(natural)
        return net

    def step(net, mask):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        hook = net.register_forward_pre_hook(lambda _net, inputs: seen.append(inputs[0].detach().clone()))
        result = train_step(
            net,
            method,
            optimizer,
            images,
            labels,
            Noise(generator("cpu", 0, "attack")),
            epoch_fraction=0.0,
            attacked=mask,
        )
        hook.remove()
        return result, seen[-1]

    result, adversarial = step(model(), attacked)
    assert torch.equal(adversarial[~attacked], images[~attacked])
    assert ((adversarial - images).abs().amax((1, 2, 3)) > 0)[attacked].all()
    everywhere, all_adversarial = step(model(), None)
    assert torch.equal(adversarial[attacked], all_adversarial[attacked])
    assert torch.equal(step(model(), torch.ones(32, dtype=torch.bool))[1], all_adversarial)
    assert 0 < result.perturbation_norm < everywhere.perturbation_norm
    none = step(model(), torch.zeros(32, dtype=torch.bool))[0]
    assert (none.abnormal, none.perturbation_norm) == (0, 0)


def test_a_run_trains_with_either_treatment(treated, alone, tmp_path):
    drawn = {}
    for treatment in ("drop", "no_perturb"):
        (record,) = fit(treated(treatment, {"epochs": 1}), tmp_path / treatment, ranks=alone)
        drawn[treatment] = record.metrics["train/perturbation_norm/mean"]
    assert drawn["no_perturb"] < drawn["drop"]


def test_the_digest_knows_which_images_and_not_where_the_file_lies(treated, experiment, indices, tmp_path):
    moved = tmp_path / "elsewhere.json"
    moved.write_text(json.dumps({"subsets": {"renamed": indices[::-1], "other": indices[1:]}}))
    digests = {
        treated("drop").digest(),
        treated("no_perturb").digest(),
        treated("drop", name="other", path=moved).digest(),
        experiment().digest(),
    }
    assert len(digests) == 4
    assert subset_hash([0, 8]) == subset_hash([8, 0])  # as a set of Python each keeps its own order
    assert treated("drop", name="renamed", path=moved).digest() == treated("drop").digest()
    assert experiment({"data.subset": None, "keep_every": 3}).digest() == experiment().digest()


def test_a_file_that_changes_afterwards_is_refused(treated, indices, file):
    settings = treated("drop")
    assert settings.data.subset.sha256 == subset_hash(indices)
    file.write_text(json.dumps({"subsets": {"some": indices[:-1]}}))
    for use in (load_splits, check_available):
        assert "another subset than the one" in refusal(lambda use=use: use(settings.data))


def test_the_steps_of_an_epoch_are_those_on_what_is_left(treated, experiment, alone, tmp_path):
    whole = {"data.train_samples": None, "optimizer.batch_size": 32}
    path = tmp_path / "half.json"
    path.write_text(json.dumps({"subsets": {"some": training_indices(experiment(whole).data)[::2].tolist()}}))
    for treatment, steps in (("drop", 21), ("no_perturb", 43)):
        settings = treated(treatment, whole, path=path)
        assert len(TrainingBatches(load_splits(settings.data).train, settings, alone)) == steps
        assert settings.steps_per_epoch == steps
        with pytest.raises(InvalidInput, match=f"evaluation.check_every: 44: an epoch has {steps} steps only"):
            treated(treatment, whole | {"evaluation.check_every": 44}, path=path)


@pytest.mark.parametrize("treatment", ["drop", "no_perturb"])
def test_neither_test_nor_held_out_images_need_the_file(treatment, treated, splits, file):
    data = treated(treatment).data
    file.unlink()
    for name, images in (("test", splits.test), ("held-out", splits.validation)):
        found, expected = evaluation_images(data, 40, name), fixed_subset(images, 40)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)


def test_what_a_file_may_not_hold(treated, file, tmp_path):
    assert "Allowed: far, none, some" in refusal(lambda: treated("drop", name="same"))
    assert "not empty" in refusal(lambda: treated("drop", name="none"))
    missing = treated("drop", path=tmp_path / "missing.json")
    assert "orchestrator subsets" in refusal(lambda: check_available(missing.data))
    assert "is not there" in refusal(missing.digest)
    for content in ('{"subsets": null}', '{"subsets": ["some"]}'):
        file.write_text(content)
        assert "subsets is no table" in refusal(lambda: read_subset(str(file), "some"))
    for indices in ([0, -1], [0, 1.0], [0, True], 3):
        file.write_text(json.dumps({"subsets": {"some": indices}}))
        assert "must be a list of indices" in refusal(lambda: read_subset(str(file), "some"))
    file.write_text("[1, 2]")
    assert "no such file of subsets" in refusal(lambda: read_subset(str(file), "some"))


def test_a_subset_of_another_split_is_refused(treated, experiment, tmp_path):
    path = tmp_path / "whole.json"
    path.write_text(json.dumps({"subsets": {"some": training_indices(experiment().data).tolist()}}))
    settings = treated("drop", {"data.split_seed": 1}, path=path)
    assert "made for another data set" in refusal(lambda: load_splits(settings.data))
    assert "all that there is to train on" in refusal(lambda: load_splits(treated("drop", path=path).data))
    assert "0 trained on" in refusal(lambda: load_splits(treated("drop", name="far").data))


def test_a_regularizer_has_nothing_to_compare_in_an_unattacked_image(treated):
    assert "data.subset.treatment" in refusal(lambda: treated("no_perturb", {"method.name": "fgsm_der"}))
    assert treated("drop", {"method.name": "fgsm_der"}).data.subset.treatment == "drop"
