"""The Experiment as data: it survives being written and read, and every mistake is named before anything runs."""

from __future__ import annotations

import math

import pytest
import yaml

from trainers import catalog
from trainers.config import apply_overrides, apply_values, parse
from trainers.data.availability import check_available
from trainers.pixels import PixelValue
from trainers.problems import InvalidInput

FULL = {
    "data": {"name": "cifar10", "directory": "/data"},
    "model": {"name": "preact_resnet18"},
    "method": {"name": "weat_adv_der"},
    "attack": {"epsilon": "8/255", "step_size": "2/255"},
    "schedule": {"name": "piecewise"},
}


def complaint(raw):
    with pytest.raises(InvalidInput) as caught:
        parse(raw)
    return {problem.field: problem.message for problem in caught.value.problems}


# Values that survive


@pytest.mark.parametrize("raw", [{}, FULL, {"method": {"name": "trades_der"}}], ids=["defaults", "full", "trades_der"])
def test_written_and_read_back_is_the_same_experiment(raw):
    experiment = parse(raw)
    for copy in (parse(experiment.to_dict()), parse(yaml.safe_load(experiment.to_yaml()))):
        assert copy == experiment
        assert copy.digest() == experiment.digest()


def test_a_fraction_stays_text_beside_its_float():
    epsilon = parse(FULL).attack.epsilon
    assert epsilon == 8 / 255
    assert parse(FULL).to_dict()["attack"]["epsilon"] == "8/255"
    assert "epsilon: 8/255" in parse(FULL).to_yaml()
    assert parse({"attack": {"epsilon": 0.031}}).to_dict()["attack"]["epsilon"] == 0.031
    assert parse({"attack": {"epsilon": "8 / 255"}}).digest() == parse({"attack": {"epsilon": "8/255"}}).digest()


@pytest.mark.parametrize(
    ("method", "path", "spellings"),
    [
        ("fgsm_der", "method.regularizer.beta", (None, 100, 100.0)),
        ("weat_adv", "method.beta", (6, 6.0)),
        ("n_fgsm", "method.inner.noise_scale", (None, 2, 2.0)),
        ("sat", "attack.step_size", (None, "2/255", 2 / 255)),
        ("sat", "attack.epsilon", ("12/100", 0.12, "0.12")),
        ("sat", "evaluation.epsilon", (1, 1.0, "1", "255/255")),
    ],
)
def test_however_a_number_is_written_the_run_has_one_digest(method, path, spellings):
    raw = {"method": method, "data": "cifar10"}
    runs = [parse(raw if written is None else apply_values(raw, {path: written})) for written in spellings]
    assert len({run.digest() for run in runs}) == 1
    assert len({repr(run.identity()) for run in runs}) == 1


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.031", 0.031), (" 1 / 4", 0.25), ("1e-2", 0.01)])
def test_pixels_are_read_from_fractions_and_decimals(text, value):
    assert PixelValue(text) == value


@pytest.mark.parametrize("text", ["", "eight", "8/", "8/0", "1/2/3", "0x8"])
def test_text_that_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="not a number or a fraction such as 8/255"):
        PixelValue(text)


def test_the_bare_name_of_a_table_is_its_name():
    assert parse({"method": "trades", "model": "resnet18"}) == parse(
        {"method": {"name": "trades"}, "model": {"name": "resnet18"}}
    )


@pytest.mark.parametrize(("preset", "relative"), [("fgsm", 1.0), ("fgsm_rs", 1.25), ("sat", 0.25), ("trades", 0.25)])
def test_the_step_follows_epsilon_and_the_attack(preset, relative):
    attack = parse({"method": preset, "attack": {"epsilon": "8/255"}}).attack
    assert attack.step_size == pytest.approx(relative * 8 / 255)


def test_evaluation_epsilon_follows_training_epsilon_unless_given():
    assert parse({"attack": {"epsilon": 0.2}}).evaluation.epsilon == 0.2
    assert parse({"attack": {"epsilon": 0.2}, "evaluation": {"epsilon": 0.1}}).evaluation.epsilon == 0.1


def test_der_on_multi_step_methods_takes_all_samples_late_and_weakly():
    single = parse({"method": "fgsm_rs_der"}).method.regularizer.parameters
    multi = parse({"method": "sat_der"}).method.regularizer.parameters
    stepped = parse({"method": "sat_der", "schedule": "piecewise"}).method.regularizer.parameters
    assert (single["samples"], single["start"], single["beta"]) == ("abnormal", 0.0, 100.0)
    assert (multi["samples"], multi["start"], multi["beta"]) == ("all", 0.75, 0.25)
    assert stepped["start"] == 0.5


def test_a_given_slot_replaces_the_presets():
    method = parse({"method": {"name": "trades", "weighting": "energy", "inner": "pgd", "beta": 3}}).method
    assert (method.inner.name, method.outer.name, method.weighting.name, method.beta) == (
        "pgd",
        "ce_nat_kl",
        "energy",
        3,
    )
    assert parse({"method": {"name": "weat_nat", "weighting": None}}).method.weighting is None


def test_where_the_data_lie_does_not_change_the_digest():
    moved = apply_values(FULL, {"data.directory": "/elsewhere", "data.download": True})
    assert parse(moved).digest() == parse(FULL).digest()


def test_how_the_records_are_read_does_not_change_the_digest():
    rules = {"evaluation.catastrophic.accuracy_drop": 0.4, "evaluation.robust": {"relative_slope": 5, "slope": -0.0005}}
    read = parse(apply_values(FULL, rules))
    assert read.evaluation.catastrophic.accuracy_drop == 0.4
    assert (read.evaluation.robust.relative_slope, read.evaluation.robust.consecutive) == (5, 3)
    assert read.digest() == parse(FULL).digest()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("check_every", 0),
        ("catastrophic.accuracy_drop", 1.0),
        ("catastrophic.energy_window", 0),
        ("catastrophic.check_drop", True),
        ("robust.slope", 0.001),
        ("robust.slope", -math.inf),
        ("robust.relative_slope", 0),
        ("robust.slope_window", 1),
        ("robust.consecutive", 1.5),
        ("robust.slpoe", -0.004),
    ],
)
def test_a_threshold_out_of_range_is_named(path, value):
    assert set(complaint(apply_values({}, {f"evaluation.{path}": value}))) == {f"evaluation.{path}"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.train_samples", 1000),
        ("data.holdout", 500),
        ("data.augment", False),
        ("data.flip", False),
        ("data.padding", 2),
        ("data.padding_mode", "reflect"),
        ("data.normalization", "none"),
        ("data.split_seed", 1),
        ("model.width", 32),
        ("model.name", "resnet18"),
        ("method.name", "trades_der"),
        ("method.beta", 3),
        ("method.weighting", None),
        ("method.regularizer.gamma", 0.2),
        ("attack.epsilon", 0.031),
        ("attack.steps", 7),
        ("attack.batch_norm", "train"),
        ("optimizer.learning_rate", 0.2),
        ("optimizer.batch_size", 64),
        ("schedule.factor", 0.2),
        ("epochs", 31),
        ("evaluation.epsilon", "4/255"),
        ("evaluation.probe_samples", 100),
        ("evaluation.check_every", 10),
        ("seed", 1),
    ],
)
def test_what_changes_the_result_changes_the_digest(path, value):
    assert parse(apply_values(FULL, {path: value})).digest() != parse(FULL).digest()


def test_parsing_leaves_its_input_alone():
    raw = {"method": {"name": "fgsm_der"}, "attack": {}}
    parse(raw)
    assert raw == {"method": {"name": "fgsm_der"}, "attack": {}}


def test_checks_that_no_epoch_would_reach_are_refused():
    tiny = {"data": {"train_samples": 256}, "optimizer": {"batch_size": 64}}
    assert parse(tiny | {"evaluation": {"check_every": 4}}).steps_per_epoch == 4
    assert "4 steps" in complaint(tiny | {"evaluation": {"check_every": 5}})["evaluation.check_every"]


def test_command_line_words_are_yaml_at_dotted_paths():
    raw = apply_overrides({"method": "trades"}, ["attack.epsilon=8/255", "method.beta=3", "data.augment=true"])
    assert raw == {
        "method": {"name": "trades", "beta": 3},
        "attack": {"epsilon": "8/255"},
        "data": {"augment": True},
    }


# Mistakes


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("method.name", "tradez", "Did you mean trades"),
        ("method.beat", 3, "Did you mean beta"),
        ("atack.epsilon", 0.1, "Did you mean attack"),
        ("data.nmae", "digits", "Did you mean name"),
        ("data.name", "cifar", "Did you mean cifar10"),
        ("data.holdout", 1500, "1500"),
        ("data.train_samples", 1500, "1500"),
        ("data.size", 12, "12"),
        ("data.padding", 32, "less than the images' 32 pixels"),
        ("data.padding", -1, "-1"),
        ("data.padding_mode", "edge", "edge"),
        ("data.normalization", "whitened", "whitened"),
        ("model.name", "smal", "Did you mean small"),
        ("model.widht", 3, "Did you mean width"),
        ("model.width", 0, ">= 1"),
        ("model.width", 8.5, "whole number"),
        ("model.norm", "layer", "layer"),
        ("schedule.name", "onecycl", "Did you mean onecycle"),
        ("schedule.peak", 1.0, "<= 0.99"),
        ("method.beta", 3, "no beta in its loss"),
        ("method.inner", "pdg", "Did you mean pgd"),
        ("method.outer", "ce_nat", "Did you mean ce_nat_kl"),
        ("method.weighting", "energie", "Did you mean energy"),
        ("method.regularizer.gamma", 0.1, "fgsm has none"),
        ("attack.epsilon", 0, "0"),
        ("attack.epsilon", "0/255", "0"),
        ("attack.epsilon", -0.1, "-0.1"),
        ("attack.epsilon", 1.5, "1.5"),
        ("attack.epsilon", 8, "8"),
        ("attack.epsilon", math.nan, "nan"),
        ("attack.epsilon", "8:255", "8/255"),
        ("attack.epsilon", "8/0", "8/0"),
        ("attack.epsilon", True, "True"),
        ("attack.epsilon", [0.1], "0.1"),
        ("attack.steps", 2, "exactly 1 step"),
        ("attack.batch_norm", "frozen", "frozen"),
        ("optimizer.learning_rate", 0, "0"),
        ("optimizer.learning_rate", math.nan, "nan"),
        ("optimizer.momentum", 1, "1"),
        ("optimizer.batch_size", 2.5, "2.5"),
        ("optimizer.batch_size", True, "True"),
        ("epochs", 0, "0"),
        ("epochs", True, "True"),
        ("epochs", "many", "many"),
        ("seed", -1, "-1"),
        ("evaluation.epsilon", math.inf, "inf"),
        ("method.inner", None, "name one of"),
        ("method.inner.noise_scale", 2, "unknown field of fgsm"),
        ("method.weight_perturbation", "apw", "Did you mean awp"),
        ("method.weighting", "margins", "Did you mean margin"),
        ("optimizer.ema_decay", 1, "1"),
        ("attack.warmup_epochs", -1, "-1"),
        ("method.outer", None, "name one of"),
        ("method.outer.beta", 3, "unknown field of ce_adv"),
        ("precision", "float16", "bfloat16"),
        ("attack", 3, "3"),
        ("data", None, "None"),
        ("schedule", ["onecycle"], "onecycle"),
    ],
)
def test_a_mistake_is_named_by_field_with_the_value_or_the_nearest_name(path, value, says):
    found = complaint(apply_values({}, {path: value}))
    places = [path, f"{path}.name", *(path.rsplit(".", cut)[0] for cut in (1, 2))]
    assert says in found[next(place for place in places if place in found)]


def test_der_on_abnormal_examples_of_a_kl_attack_is_allowed_but_worth_a_notice():
    raw = {"method": {"name": "trades_der", "regularizer": {"samples": "abnormal"}}}
    assert "abnormal examples are defined by the cross-entropy" in parse(raw).notices[0]
    for quiet in ("trades_der", "fgsm_rs_der", "aaer", "sat"):
        assert parse({"method": quiet, "data": "cifar10"}).notices == []


@pytest.mark.parametrize(
    ("method", "inner", "given", "noticed"),
    [
        ("sat", "pgd_kl", None, "train, as sat has it; methods with the inner attack pgd_kl have eval"),
        ("trades", "fgsm_rs", None, "eval, as trades has it; methods with the inner attack fgsm_rs have train"),
        ("trades", "pgd", None, "eval, as trades has it; methods with the inner attack pgd have train"),
        ("sat", {"start": "gaussian"}, None, "train, as sat has it; methods with the inner attack pgd have eval"),
        ("trades", {"name": "pgd", "start": "gaussian"}, None, None),
        ("sat", "pgd_kl", "eval", None),
        ("sat", "pgd_margin", None, None),
        ("sat", "pgd", "eval", None),
    ],
)
def test_a_batch_norm_mode_that_no_method_has_with_the_attack_is_worth_a_notice(method, inner, given, noticed):
    attack = {} if given is None else {"batch_norm": given}
    found = parse({"method": {"name": method, "inner": inner}, "attack": attack}).notices
    assert [noticed in notice for notice in found] == ([] if noticed is None else [True])


@pytest.mark.parametrize("name", catalog.PRESETS)
def test_a_method_as_it_is_published_is_worth_no_notice(name):
    assert parse({"method": name, "data": "cifar10"}).notices == []


@pytest.mark.parametrize("data", ["digits", "svhn", "tiny_imagenet"])
def test_strengths_of_aaer_that_are_of_another_data_set_are_worth_a_notice(data):
    (notice,) = parse({"method": "aaer", "data": data, "attack": {"epsilon": "8/255"}}).notices
    assert notice.endswith(f"published for ε = 8/255, the nearest to 8/255; for {data} there are none")
    given = {"name": "aaer", "regularizer": {"loss_strength": 1.0, "variation_strength": 1.0}}
    assert parse({"method": given, "data": data}).notices == []


@pytest.mark.parametrize("method", ["sat", "trades", "weat_adv", "mart", "mail_at"])
@pytest.mark.parametrize(("steps", "times"), [(1, 0.25), (2, 0.5), (3, 1 / 3), (4, 0.25), (10, 0.25)])
def test_the_usual_steps_get_to_epsilon_however_few_they_are(method, steps, times):
    found = parse({"method": method, "attack": {"epsilon": 0.24, "steps": steps}})
    assert found.attack.step_size == pytest.approx(times * 0.24)
    assert found.notices == []


def test_steps_that_do_not_get_to_epsilon_are_worth_a_notice():
    (notice,) = parse({"method": "trades", "attack": {"epsilon": "8/255", "steps": 3, "step_size": "2/255"}}).notices
    assert notice.startswith("attack.step_size: 2/255 in 3 steps moves pixels by at most 0.75 ε: ")
    (notice,) = parse({"recipe": "rice", "data": "svhn", "attack": {"epsilon": "16/255"}}).notices
    assert notice.startswith("attack.step_size: 1/255 in 10 steps moves pixels by at most 0.625 ε")
    assert parse({"recipe": "rice", "data": "svhn"}).notices == []
    assert parse({"method": "trades", "attack": {"steps": 4, "step_size": "2/255", "epsilon": "8/255"}}).notices == []


@pytest.mark.parametrize(
    ("method", "epochs", "slot", "says"),
    [
        ("sat_der", 3, "regularizer", "0.75 of 3 epochs: der never acts"),
        ("sat_der", 4, "regularizer", "0.75 of 4 epochs: der acts in the last epoch alone"),
        ({"name": "fgsm_der", "regularizer": {"start": 1.0}}, 30, "regularizer", "1 of 30 epochs: der never acts"),
        ("mail_at", 2, "weighting", "0.633333 of 2 epochs: margin never acts"),
        ("trades_awp", 1, "weight_perturbation", "0.05 of 1 epochs: awp never acts"),
        (
            {"name": "sat_der", "regularizer": {"start": 0.96}},
            100,
            "regularizer",
            "0.96 of 100 epochs: der acts in the last 4 epochs alone",
        ),
    ],
)
def test_a_slot_that_acts_too_late_to_matter_is_worth_a_notice(method, epochs, slot, says):
    assert parse({"method": method, "epochs": epochs}).notices == [f"method.{slot}.start: {says}"]


@pytest.mark.parametrize(("method", "epochs"), [("sat_der", 8), ("fgsm_der", 1), ("mail_at", 6), ("trades_awp", 3)])
def test_a_slot_that_acts_for_more_than_an_epoch_or_throughout_is_not(method, epochs):
    assert parse({"method": method, "epochs": epochs}).notices == []


def test_all_mistakes_come_in_one_message():
    found = complaint(
        {
            "method": {"name": "tradez"},
            "attack": {"epsilon": 2},
            "optimizer": {"momentun": 0.9},
            "data": {"holdout": 9999},
            "epochs": 0,
        }
    )
    assert {"method.name", "attack.epsilon", "optimizer.momentun", "data.holdout", "epochs"} <= set(found)


def test_what_shows_only_in_the_whole_comes_in_the_same_message():
    late = {"evaluation": {"check_every": 99}, "optimizer": {"momentum": 0.5, "momentum_at_peak": 0.8}}
    fields = {"evaluation.check_every", "optimizer.momentum_at_peak"}
    assert set(complaint(late)) == fields
    assert set(complaint(late | {"method": {"name": "sat", "beta": 3}})) == fields | {"method.beta"}
    assert set(complaint(late | {"data": "cifar"})) == {"optimizer.momentum_at_peak", "data.name"}


def test_a_wrong_epsilon_is_the_only_complaint_about_it():
    for wrong in ("eight", 0, 9):
        assert set(complaint({"attack": {"epsilon": wrong}})) == {"attack.epsilon"}


@pytest.mark.parametrize("word", ["epochs", "=3", "attack.epsilon=[", "attack={"])
def test_a_command_line_word_that_is_no_setting_is_refused(word):
    with pytest.raises(InvalidInput):
        apply_overrides({}, [word])


def paths(table, prefix=""):
    for key, value in table.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")


NONSENSE = [
    None, True, -1, 0, 1, 2.0, 1e400, -math.inf, math.nan, 10**400, "", "nonsense", "1e400", "8/255", b"8",
    [], [1], [0.5, "x"], {}, {"name": 1}, {"name": []}, {1: 2}, {"a": {"b": 1}}, (1, 2), object(),
]  # fmt: skip


@pytest.mark.parametrize("path", [*paths(parse(FULL).to_dict()), "schedule.peak", "model.norm", "", "1"])
def test_nonsense_is_invalid_input_or_a_sound_experiment_and_nothing_else(path):
    for value in NONSENSE:
        try:
            experiment = parse(apply_values(FULL, {path: value}))
        except InvalidInput:
            continue
        assert parse(yaml.safe_load(experiment.to_yaml())).digest() == experiment.digest()


@pytest.mark.parametrize("value", [2.0, True])
@pytest.mark.parametrize(("model", "field"), [("small", "width"), ("small", "stem_stride")])
def test_a_whole_number_of_a_model_is_an_int_as_its_layers_want_it(model, field, value):
    assert f"model.{field}" in complaint({"model": {"name": model, field: value}})


def test_pixel_values_survive_pickling_with_their_text():
    import pickle

    value = pickle.loads(pickle.dumps(PixelValue("8/255")))
    assert (value, value.text) == (8 / 255, "8/255")


def test_a_home_that_is_not_there_is_a_folder_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = {"name": "cifar10", "directory": "~nobody_of_that_name/cifar", "extra": "~nobody_of_that_name/1m.npz"}
    data |= {"extra_fraction": 0.5, "subset": {"file": "~nobody_of_that_name/s.json", "name": "s", "treatment": "drop"}}
    found = parse({"data": data}).data
    assert found.directory == str(tmp_path / "~nobody_of_that_name" / "cifar")
    with pytest.raises(InvalidInput, match="holds no cifar-10-batches-py"):
        check_available(found)
