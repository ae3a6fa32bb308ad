"""Studies as files: the shipped ones load, what is written reads back, and every mistake has its dotted field."""

from __future__ import annotations

import pytest
import yaml

from search_spaces.loader import header, load_study, shipped
from search_spaces.space import corners
from search_spaces.study import OBJECTIVES, parse_study
from trainers.diagnostics.overfitting import CLEAN_ACCURACY, ROBUST_ACCURACY
from trainers.problems import InvalidInput

STUDY = {
    "name": "der",
    "experiment": {"method": "fgsm_rs_der", "evaluation": {"epsilon": "8/255"}, "epochs": 3},
    "space": {
        "attack.epsilon": ["4/255", "8/255"],
        "method.regularizer.samples": ["abnormal", "all"],
        "method.regularizer.beta": {"low": 1, "high": 300, "log": True, "when": {"method.regularizer.samples": "all"}},
        "optimizer.batch_size": {"low": 32, "high": 64, "integer": True},
    },
    "search": {"sampler": "random", "trials": 4, "start": [{"attack.epsilon": "4/255"}]},
    "confirm": {"top": 1, "attack": "pgd20"},
}


def complaint(**changes):
    with pytest.raises(InvalidInput) as caught:
        parse_study(STUDY | changes)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_objectives_are_metrics_that_are_measured():
    assert OBJECTIVES == (CLEAN_ACCURACY, ROBUST_ACCURACY)


@pytest.mark.parametrize("path", shipped().values(), ids=shipped())
def test_every_shipped_study_says_what_it_asks_and_loads(path):
    assert len(header(path)) > 20
    study = load_study(path.stem)
    assert study == load_study(path)
    assert study.name == path.stem
    assert study.space
    assert parse_study(yaml.safe_load(study.to_yaml())) == study
    smoke = load_study(path.stem, smoke=True)
    assert (smoke.name, smoke.search.trials, smoke.experiment["epochs"]) == (f"{study.name}-smoke", 2, 1)
    for point in corners(smoke.space):
        assert set(smoke.experiment_for(point).first_epochs.values()) <= {0}
        assert smoke.experiment_for(point).training_passes == study.experiment_for(point).training_passes


def test_a_study_written_and_read_back_is_the_same():
    study = parse_study(STUDY)
    assert parse_study(yaml.safe_load(study.to_yaml())) == study
    assert "8/255" in study.to_yaml()


def test_stop_rules_combine_and_a_smoke_run_is_not_stopped(tmp_path):
    stop = {"catastrophic": True, "robust": {"patience": 4}, "prune": {"rule": "hyperband", "grace_epochs": 1}}
    raw = STUDY | {"search": {"stop": stop}}
    study = parse_study(raw)
    assert parse_study(yaml.safe_load(study.to_yaml())) == study
    assert (study.search.stop.catastrophic, study.search.stop.robust.patience) == (True, 4)
    file = tmp_path / "stop.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    assert load_study(file, smoke=True).search.stop == parse_study(STUDY).search.stop


@pytest.mark.parametrize(
    ("data", "space", "split"),
    [
        ({}, {}, (50, 256)),
        ({"train_samples": 4000}, {}, (50, 256)),
        ({"subset": {"file": "s.json", "name": "random", "treatment": "drop"}}, {}, (1000, 256)),
        ({"train_samples": 4000}, {"row": {"variants": {"one": {"data.subset": None}}}}, (1000, 4000)),
        ({"holdout": 200}, {"data.subset": [None]}, (200, 256)),
    ],
)
def test_a_smoke_run_has_the_images_of_its_subsets(data, space, split, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "experiment": {"data": {"name": "cifar10", **data}}, "space": space}))
    (found,) = load_study(file, smoke=True).data
    assert (found.holdout, found.train_samples) == split


def test_a_subset_that_the_command_line_names_counts_in_a_smoke_run():
    words = ["experiment.data.subset={file: s.json, name: random, treatment: drop}"]
    assert {found.holdout for found in load_study("co_small", words, smoke=True).data} == {
        found.holdout for found in load_study("co_small", words).data
    }


def test_a_smoke_run_shows_what_begins_late_wherever_the_space_puts_it(tmp_path):
    raw = {
        "name": "late",
        "experiment": {"recipe": "awp", "data": "svhn", "evaluation": {"epsilon": "8/255"}},
        "space": {
            "row": {"variants": {"mail": {"method.name": "mail_at_der"}, "awp": {"method": "sat_awp"}}},
            "method.regularizer.start": {"choices": [0.5, 1.0], "when": {"row": "mail"}},
            "method.regularizer.gamma": {"low": 0, "high": 1, "when": {"row": "mail"}},
        },
        "search": {"trials": 5},
    }
    file = tmp_path / "late.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    whole, smoke = load_study(file), load_study(file, smoke=True)
    smoke = parse_study(yaml.safe_load(smoke.to_yaml()))
    mail = {"row": "mail", "method.regularizer.start": 0.5, "method.regularizer.gamma": 0.2}
    for point, slots in ((mail, {"weighting", "regularizer"}), ({"row": "awp"}, {"weight_perturbation"})):
        assert all(whole.experiment_for(point).first_epochs[slot] > 0 for slot in slots)
        assert smoke.experiment_for(point).first_epochs == dict.fromkeys(slots, 0)
    assert smoke.experiment_for(mail).method.regularizer.parameters["gamma"] == 0.2
    assert smoke.notices == []


@pytest.mark.parametrize("longer", [{"recipe": "n_fgsm", "data": "svhn"}, {"evaluation": {"check_every": 5}}])
def test_what_needs_longer_runs_is_left_out_of_a_smoke_run(longer, tmp_path):
    file = tmp_path / "longer.yaml"
    file.write_text(yaml.safe_dump({"name": "longer", "experiment": longer}))
    assert load_study(file).experiment_for({}).epochs == 30
    assert load_study(file, smoke=True).experiment_for({}).epochs == 1


def test_an_experiment_of_the_study_is_its_base_at_a_point():
    point = {"attack.epsilon": "4/255", "method.regularizer.samples": "all", "method.regularizer.beta": 30.0}
    experiment = parse_study(STUDY).experiment_for(point)
    assert (experiment.attack.epsilon.text, experiment.evaluation.epsilon.text) == ("4/255", "8/255")
    assert experiment.method.regularizer.parameters["beta"] == 30
    assert experiment.epochs == 3


def test_data_in_a_relative_folder_are_the_same_for_workers_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = parse_study({"name": "moved", "experiment": {"data": {"name": "digits", "directory": "data"}}})
    experiment = study.experiment_for({})
    assert experiment.data.directory == str(tmp_path / "data")
    assert study.located(experiment).data.directory == str(tmp_path / "data")


def test_a_study_may_search_nothing():
    study = parse_study({"name": "one", "experiment": {"method": "trades"}})
    assert study.space == ()
    assert study.experiment_for({}).method.name == "trades"


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"name": "a/b"}, "name", "a/b"),
        ({"name": ""}, "name", "letters"),
        ({"nmae": "x"}, "nmae", "Did you mean name"),
        ({"experiment": {"method": "fgsm_rs_der"}}, "experiment.evaluation.epsilon", "must fix it"),
        ({"experiment": {"method": "fgsm", "epochs": 0}}, "experiment.epochs", "0"),
        ({"experiment": 3}, "experiment", "3"),
        ({"search": {"trials": 0}}, "search.trials", "0"),
        ({"search": {"trials": True}}, "search.trials", "True"),
        ({"search": {"sampler": "tpee"}}, "search.sampler", "tpee"),
        ({"search": {"objectives": ["val/accuracy"]}}, "search.objectives.0", "val/accuracy"),
        ({"search": {"objectives": []}}, "search.objectives", "[]"),
        ({"search": {"trails": 3}}, "search.trails", "Did you mean trials"),
        ({"search": {"stop": {"catastrophic": 3}}}, "search.stop.catastrophic", "3"),
        ({"search": {"stop": {"robust": {}}}}, "search.stop.robust.patience", "missing"),
        ({"search": {"stop": {"robust": {"patience": 0}}}}, "search.stop.robust.patience", "0"),
        ({"search": {"stop": {"prune": {"rule": "pasha", "grace_epochs": 1}}}}, "search.stop.prune.rule", "pasha"),
        ({"search": {"stop": {"prune": {"rule": "asha", "grace_epochs": 3}}}}, "search.stop.prune.grace_epochs", "3"),
        (
            {"search": {"stop": {"prune": {"rule": "median", "grace_epochs": 1, "reduction": 3}}}},
            "search.stop.prune",
            "median has no reduction",
        ),
        (
            {
                "space": {"budget": {"variants": {"short": {"epochs": 2}, "long": {"epochs": 3}}}},
                "search": {"stop": {"prune": {"rule": "asha", "grace_epochs": 1}}},
            },
            "search.stop.prune",
            "fix epochs",
        ),
        (
            {"search": {"start": [{"atack.epsilon": 0.1}]}},
            "search.start.0.atack.epsilon",
            "Did you mean attack.epsilon",
        ),
        ({"confirm": {"attack": "pgd"}}, "confirm.attack", "pgd"),
        (
            {"confirm": {"ladder": [{"attack": "pgd", "samples": 9, "keep": 4}]}},
            "confirm.ladder.0.attack",
            "Did you mean",
        ),
        (
            {"confirm": {"top": 3, "ladder": [{"attack": "cw", "samples": 9, "keep": 2}]}},
            "confirm.ladder.0.keep",
            "confirm.top wants 3",
        ),
        (
            {"confirm": {"ladder": [{"attack": name, "samples": 9, "keep": 4} for name in ("cw", "margin-t")]}},
            "confirm.ladder.1.keep",
            "the rung before leaves 4",
        ),
        (
            {"confirm": {"ladder": [{"attack": "cw", "samples": 10_000, "keep": 4}]}},
            "confirm.ladder.0.samples",
            "data.holdout is",
        ),
        (
            {
                "space": {"data.holdout": [200, 100]},
                "confirm": {"ladder": [{"attack": "cw", "samples": 150, "keep": 4}]},
            },
            "confirm.ladder.0.samples",
            "data.holdout is 100",
        ),
        ({"resources": {"workers": 3}}, "resources.workers", "a global batch of 32, 64 can't be divided"),
        ({"confirm": {"workers": 3}}, "confirm.workers", "a global batch of 32, 64 can't be divided"),
        ({"resources": {"gpus_per_worker": -1}}, "resources.gpus_per_worker", "-1"),
        ({"resources": {"gpus_per_worker": 1.5}}, "resources.gpus_per_worker", "whole numbers"),
        ({"resources": {"gpus_per_worker": 0.5, "workers": 2}}, "resources.gpus_per_worker", "resources.workers is 2"),
        (
            {"resources": {"gpus_per_worker": 0.5}, "confirm": {"workers": 2}},
            "resources.gpus_per_worker",
            "confirm.workers is 2",
        ),
        ({"search": {"objectives": ["val/pgd10_accuracy"] * 2}}, "search.objectives", "one is enough"),
        ({"space": {"evaluation.epsilon": [0.1]}}, "space.evaluation.epsilon", "do not compare"),
        ({"space": {"method.gamma": [0.1]}}, "space.method.gamma", "unknown field"),
        ({"space": {"epochs": {"low": 3}}}, "space.epochs", "low and high"),
        ({"space": {"epochs": {"low": "x", "high": 3}}}, "space.epochs.low", "x"),
        ({"space": {"epochs": {"low": 1, "high": 3, "lgo": True}}}, "space.epochs.lgo", "Allowed: choices, high"),
        ({"confirm": {"ladder": [{"atack": "cw"}]}}, "confirm.ladder.0.atack", "Did you mean attack? Allowed: attack"),
        ({"search": {"stop": {"prune": {"rul": "asha"}}}}, "search.stop.prune.rul", "Did you mean rule? Allowed"),
        (
            {"search": {"constraints": {"val/clean_accuracy": {"at_lest": 0.5}}}},
            "search.constraints.val/clean_accuracy.at_lest",
            "Did you mean at_least? Allowed: at_least, baseline, minus",
        ),
        ({"space": {"epochs": 3}}, "space.epochs.choices", "3"),
        ({"space": {"epochs": "3"}}, "space.epochs.choices", "3"),
        ({"space": {"epochs": {"low": 1, "high": 2, "when": ["x"]}}}, "space.epochs.when", "x"),
        ({"space": [{"low": 1, "high": 2}]}, "space.0.path", "missing"),
        ({"space": [3]}, "space.0", "3"),
        ({"space": 3}, "space", "3"),
    ],
)
def test_a_mistake_is_named_by_its_dotted_field(changes, field, says):
    found = complaint(**changes)
    assert says in found[field]


@pytest.mark.parametrize(
    ("space", "undivided"),
    [
        ({}, "127"),
        ({"optimizer.batch_size": [64, 65, 67]}, "65, 67"),
        ({"optimizer.batch_size": {"low": 64, "high": 128, "integer": True}}, "65"),
        ({"optimizer.batch_size": {"low": 64, "high": 128, "integer": True, "step": 32}}, None),
        ({"size": {"variants": {"small": {"optimizer.batch_size": 64}, "odd": {"optimizer.batch_size": 99}}}}, "99"),
    ],
)
@pytest.mark.parametrize("section", ["resources", "confirm"])
def test_every_batch_of_the_space_must_be_divided_among_the_workers(section, space, undivided):
    raw = {"name": "s", "experiment": {"optimizer": {"batch_size": 127}}, "space": space, section: {"workers": 2}}
    if undivided is None:
        assert parse_study(raw)
        return
    with pytest.raises(InvalidInput) as caught:
        parse_study(raw)
    assert caught.value.problems[0].field == f"{section}.workers"
    assert f"a global batch of {undivided} can't" in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("space", "found"),
    [
        ({"row": {"variants": {"a": {"attack.epsilon": 0.05}, "b": {"attack.epsilon": "8/255"}}}}, "0.05 or 8/255"),
        ({"row": {"variants": {"a": {"evaluation.epsilon": 0.05}, "b": {"evaluation.epsilon": 0.1}}}}, "0.05 or 0.1"),
        ({"attack": [{"epsilon": 0.05}, {"epsilon": 0.1}]}, "0.05 or 0.1"),
        ({"data.name": ["digits", "cifar10"]}, "0.12 or 8/255"),
    ],
)
def test_an_evaluation_at_different_epsilons_is_found_whatever_changes_it(space, found):
    changes = {"space": space, "search": {"trials": 2}}
    assert found in complaint(experiment={"method": "fgsm"}, **changes)["experiment.evaluation.epsilon"]


@pytest.mark.parametrize(
    "space", [{"recipe": ["weat", "rice"]}, {"row": {"variants": {"a": {"epochs": 30}, "b": {"recipe": "weat"}}}}]
)
def test_pruning_is_refused_whatever_makes_trials_differ_in_length(space):
    search = {"trials": 2, "stop": {"prune": {"rule": "asha", "grace_epochs": 3}}}
    found = complaint(experiment={"data": {"name": "cifar10"}}, space=space, search=search)
    assert "different lengths" in found["search.stop.prune"]


@pytest.mark.parametrize(("trials", "noticed"), [(50, True), (51, False)])
def test_a_genetic_search_within_its_first_population_is_said_to_be_random(trials, noticed):
    search = {"sampler": "nsga2", "trials": trials}
    notices = parse_study(
        {"name": "s", "space": {"seed": {"low": 0, "high": 99, "integer": True}}, "search": search}
    ).notices
    assert any("nsga2" in notice for notice in notices) == noticed


def test_the_length_of_trials_is_that_of_their_recipe():
    assert load_study("table1_cifar10").epochs == 100
    varied = parse_study({"name": "s", "space": {"epochs": {"low": 2, "high": 9, "integer": True}}})
    assert varied.epochs == 9


def test_several_mistakes_come_in_one_message():
    found = complaint(name="a b", space={"evaluation.epsilon": [0.1], "method.gamma": [1]}, resources={"workers": 3})
    assert {"name", "space.evaluation.epsilon", "space.method.gamma", "resources.workers"} <= set(found)


NONSENSE = [None, True, -1, 1e400, float("nan"), "", "x", [], [1], {}, {"name": 1}, {1: 2}, {"a": {"b": []}}, object()]
PLACES = [
    "name", "experiment", "experiment.attack", "space", "space.epochs", "space.epochs.low", "space.epochs.when",
    "space.epochs.choices", "search", "search.start", "search.start.0", "search.objectives", "search.stop",
    "search.stop.robust", "search.stop.prune", "search.stop.prune.rule", "confirm", "confirm.top",
    "resources", "resources.workers", "tracking", "tracking.uri",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_nonsense_is_invalid_input_or_a_sound_study_and_nothing_else(place):
    *parents, last = place.split(".")
    for value in NONSENSE:
        raw = {
            "name": "x",
            "experiment": {},
            "space": {"epochs": {"low": 1, "high": 3, "integer": True}},
            "search": {"start": [{"epochs": 2}], "stop": {"prune": {"rule": "median", "grace_epochs": 1}}},
            "confirm": {},
            "resources": {},
            "tracking": {},
        }
        table = raw
        for part in parents:
            table = table[part]
        table[int(last) if isinstance(table, list) else last] = value
        try:
            study = parse_study(raw)
        except InvalidInput:
            continue
        assert study.to_yaml()


def test_what_must_be_a_list_or_a_table_is_said_in_the_words_of_the_file():
    assert complaint(space={"seed": 3})["space.seed.choices"] == "3: must be a list"
    assert complaint(space={"seed": {"choices": [1], "when": 3}})["space.seed.when"] == "3: must be a table"
    assert complaint(search=[3])["search"] == "[3]: must be a table"


def test_a_notice_of_one_point_of_the_space_is_a_notice_of_the_study():
    raw = {
        "name": "noticed",
        "experiment": {"method": "trades_der"},
        "space": {"method.regularizer.samples": ["all", "abnormal"]},
    }
    (notice,) = parse_study(raw).notices
    assert notice.startswith("method.regularizer.samples")
    assert parse_study(raw | {"space": {"method.regularizer.samples": ["all"]}}).notices == []


@pytest.mark.parametrize(
    ("attack", "kept"), [("cw", "cw"), ("pgd20, square", "pgd20,square"), ("worst", "pgd20,pgd50-10,cw,autoattack")]
)
def test_confirmations_take_any_attack_or_list(attack, kept):
    assert parse_study({"name": "s", "confirm": {"attack": attack}}).confirm.attack == kept


def test_an_unknown_attack_is_named():
    with pytest.raises(InvalidInput, match=r"confirm.attack: 'autoatack': unknown .* Did you mean autoattack"):
        parse_study({"name": "s", "confirm": {"attack": "autoatack"}})


def test_a_grid_ends_with_its_last_point():
    raw = {"name": "grid", "space": {"method.beta": [1, 3, 6]}, "experiment": {"method": "trades"}}
    assert parse_study(raw | {"search": {"sampler": "grid"}}).trials == 3
    assert parse_study(raw | {"search": {"sampler": "grid", "trials": 2}}).trials == 2
    assert parse_study(raw | {"search": {"trials": 9}}).trials == 9


@pytest.mark.parametrize(
    ("search", "space", "field", "says"),
    [
        ({"sampler": "grid"}, {"method.beta": {"low": 1, "high": 2}}, "space.method.beta", "a step"),
        ({"sampler": "grid"}, {"method.beta": {"low": 1, "high": 2, "step": 0}}, "space.method.beta", "above 0"),
        ({"sampler": "grid"}, {"schedule.milestones": [[0.5], [0.4]]}, "space.schedule.milestones", "variants: {NAME"),
        ({"sampler": "cmaes"}, {"method.beta": {"low": 1, "high": 2}}, "search.objectives", "one objective"),
        ({"sampler": "cmaes"}, {"method.beta": [1, 2]}, "space.method.beta", "without choices"),
    ],
)
def test_a_sampler_that_does_not_suit_the_space_is_named(search, space, field, says):
    with pytest.raises(InvalidInput) as caught:
        parse_study({"name": "unsuited", "experiment": {"method": "trades"}, "space": space, "search": search})
    assert says in {problem.field: problem.message for problem in caught.value.problems}[field]


def test_a_study_names_all_data_that_any_of_its_points_trains_on():
    varied = parse_study(
        {
            "name": "s",
            "experiment": {"evaluation": {"epsilon": "8/255"}},
            "space": {"data.name": ["digits", "cifar10", "cifar100"], "seed": [0, 1]},
        }
    )
    assert [data.name for data in varied.data] == ["digits", "cifar10", "cifar100"]
    assert any("held-out images differ" in notice for notice in varied.notices)
    assert [data.name for data in parse_study({"name": "s"}).data] == ["digits"]
