"""Files of studies, with the words of the command line on top; a file that is none is refused by its name."""

from __future__ import annotations

import pytest
import yaml

from search_spaces.loader import header, load_study
from search_spaces.study import parse_study
from tests.search_spaces.test_study import STUDY
from trainers.problems import InvalidInput


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "der.yaml"
    path.write_text("# Does DER prevent the collapse?\n" + yaml.safe_dump(STUDY, sort_keys=False))
    return path


def test_a_file_is_read_with_the_words_of_the_command_line_on_top(file):
    study = load_study(file, ["search.trials=9", "experiment.attack.steps=1", "tracking.uri=sqlite:///x.db"])
    assert (study.search.trials, study.tracking.uri) == (9, "sqlite:///x.db")
    assert study.experiment["attack"] == {"steps": 1}
    assert load_study(str(file)) == parse_study(STUDY)


def test_the_first_comment_is_the_question(file, tmp_path):
    assert header(file) == "Does DER prevent the collapse?"
    bare = tmp_path / "bare.yaml"
    bare.write_text("name: x\n")
    assert header(bare) == ""


@pytest.mark.parametrize("word", ["search.trials", "search.trials=none", "serach.trials=3", "search.trials=["])
def test_a_word_that_sets_nothing_is_refused(word, file):
    with pytest.raises(InvalidInput):
        load_study(file, [word])


@pytest.mark.parametrize("content", [b"- a\n", b"", b"name: [", b"\xff\xfe", b"name: \x00"])
def test_a_file_that_is_no_table_is_refused_by_its_name(content, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"broken\.yaml"):
        load_study(path)


def test_words_of_the_command_line_reach_into_the_space(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    words = [
        "space.method.regularizer.beta.low=3", "space.optimizer.batch_size={low: 8, high: 16, integer: true}",
        "space.method.regularizer.beta.when.method.regularizer.samples=abnormal", "space.attack.epsilon=[4/255, 2/255]",
        "space.seed=[0, 1]",
    ]  # fmt: skip
    found = {dimension.path: dimension for dimension in load_study(file, words).space}
    beta = found["method.regularizer.beta"]
    assert (beta.low, beta.high, beta.log, beta.when) == (3, 300, True, {"method.regularizer.samples": ("abnormal",)})
    assert found["attack.epsilon"].choices == ("4/255", "2/255")
    assert (found["optimizer.batch_size"].high, found["seed"].choices) == (16, (0, 1))
    with pytest.raises(InvalidInput, match=r"experiment.attack.epsilon: has no effect, .* set space.attack.ep"):
        load_study(file, ["experiment.attack.epsilon=2/255"])
    load_study(file, ["experiment.method.regularizer.beta=4"])  # where its condition does not hold
    with pytest.raises(InvalidInput, match=r"space.attack.epsilon.low"):
        load_study(file, ["space.attack.epsilon.low=x"])
    with pytest.raises(InvalidInput, match=r"regularizer.beta.low: {'x': 3}: .* is not a number"):
        load_study(file, ["space.method.regularizer.beta.low.x=3"])


def test_a_key_that_is_given_twice_is_named_with_its_lines(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("name: twice\nsearch:\n  trials: 2\n  seed: 1\n  trials: 200\n")
    with pytest.raises(InvalidInput) as refused:
        load_study(path)
    assert str(refused.value) == f"{path}: can't be read: 'trials' is given twice, in line 3 and in line 5"
    path.write_text("name: once\nsearch: {<<: &usual {trials: 2, seed: 1}, trials: 200}\n")
    assert load_study(path).search.trials == 200


@pytest.mark.parametrize("source", ["no_such_study", "no_such_file.yaml", "folder/no_such_file"])
def test_a_study_that_does_not_exist_is_named(source):
    with pytest.raises(InvalidInput, match=source):
        load_study(source)
