"""A study that is resumed from another folder names the same files."""

from __future__ import annotations

from orchestrator import cli
from search_spaces.rooted import rooted
from search_spaces.study import parse_study

SUBSET = {"file": "sub.json", "name": "random", "treatment": "drop"}
STUDY = {
    "name": "from_here",
    "experiment": {"data": {"name": "cifar10", "directory": "data", "subset": SUBSET}},
    "space": {
        "row": {"variants": {"all": {"data.subset": None}, "some": {"data.subset": SUBSET | {"name": "low_energy"}}}},
        "data.directory": ["data", "~/data", "/shared/data"],
        "seed": {"choices": [1, 2], "when": {"data.directory": "data"}},
    },
    "search": {"start": [{"row": "all", "data.directory": "data", "seed": 2}]},
    "tracking": {"uri": "sqlite:///ml.db"},
}


def test_its_files_are_those_of_the_folder_where_it_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = rooted(parse_study(STUDY))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    read_again = parse_study(study.to_raw())
    assert read_again == study
    here, subset = str(tmp_path / "data"), str(tmp_path / "sub.json")
    found = read_again.experiment_for({"row": "some", "data.directory": here, "seed": 1})
    assert (found.data.directory, found.data.subset.file) == (here, subset)
    assert read_again.experiment["data"]["subset"]["file"] == subset
    assert read_again.space[1].choices == (here, "~/data", "/shared/data")
    assert read_again.start_points == [{"row": "all", "data.directory": here, "seed": 2}]
    assert read_again.tracking.uri == f"sqlite:///{tmp_path / 'ml.db'}"


def test_servers_and_what_is_absolute_stay_as_they_are():
    study = parse_study(
        {
            "name": "fixed",
            "experiment": {"data": {"directory": "/shared/data", "extra": "1m.npz", "extra_fraction": 0.5}},
            "tracking": {"uri": "http://head:5000"},
        }
    )
    assert rooted(study) == study


def test_sweep_keeps_a_study_that_can_be_resumed_from_anywhere(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("orchestrator.study.run.run_study", lambda study, *_, **__: started.append(study) or 0)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "energy_subsets", "tracking.uri=sqlite:///ml.db"]) == 0
    (study,) = started
    assert study.tracking.uri == f"sqlite:///{tmp_path / 'ml.db'}"
    subsets = [row["data.subset"] for row in study.space[0].variants.values()]
    assert {subset["file"] for subset in subsets if subset} == {str(tmp_path / "subsets.json")}
