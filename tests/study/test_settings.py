"""What a person would misread in a YAML file or after -p is refused: the line or name, the value and the fix."""

import pytest
from helpers.toy import CELL, notebook

from safealign_utils.runs import sweep
from safealign_utils.study import settings as parameters
from safealign_utils.study import strict_yaml
from safealign_utils.study.settings import Refusal


@pytest.fixture
def settings(tmp_path):
    """Resolved settings of `-p` pairs and of the text of a YAML file."""
    cell = parameters.read_cell(notebook(tmp_path / "toy.ipynb", CELL))

    def of(*given, file=""):
        (tmp_path / "f.yaml").write_text(file, encoding="utf-8")
        return parameters.resolve(parameters.collect(cell, given, [tmp_path / "f.yaml"]))

    return of


@pytest.mark.parametrize(
    "text, words",
    [
        ("beta: 0.1\nsteps: 5\nbeta: 0.5", ["line 3", "'beta' is given twice, first in line 1"]),
        ("{beta: 1, 'beta': 1}", ["line 1", "'beta' is given twice"]),
        ("betas:\n- {a: 1, a: 2}", ["line 2", "'a' is given twice"]),
        ("steps: 1\nseed: 010", ["line 2", "seed: 010", "leading zero"]),
        ("seed: -08", ["seed: -08", "leading zero"]),
        ("pairs: 1:30", ["pairs: 1:30", "sixties"]),
        ("beta: 1:30.5", ["1:30.5", "sixties"]),
        ("pairs: 0x10", ["0x10", "decimal"]),
        ("pairs: 0b11", ["0b11", "decimal"]),
        ("pairs: 0o17", ["0o17", "decimal"]),
        ("pairs: 1_000", ["1_000", "digits alone"]),
        ("beta: 1_0.5e-1_0", ["1_0.5e-1_0", "digits alone"]),
        ("label: yes", ["label: yes", "true or false"]),
        ("label: Off", ["label: Off", "in quotes"]),
        ("revision: 2024-01-01", ["2024-01-01", "date"]),
        ("beta: nan", ["beta='nan'", "plain digits"]),
        ("revision: None", ["None", "in quotes"]),
        ("beta: &a 1\nbetas: [*a]", ["line 1", "anchors"]),
        ("<<: {beta: 1}", ["<<"]),
        ("beta: !!float 1", ["!!float", "tag"]),
        ("beta:\t1", ["line 1, column 6", "a tab; write blanks"]),
        ("beta: 1\n---\nbeta: 2", ["line 2", "second document"]),
        ("1: 2", ["line 1", "no name"]),
        ("? [a]\n: 1", ["line 1", "no name"]),
        ("Beta: 1", ["Beta", "did you mean 'beta'"]),
        ("'beta ': 1", ["'beta '", "did you mean 'beta'"]),
        ("beta:", ["beta=None", "leave the line out"]),
        ("learning_rate: 1.0e3", ["'1.0e3'", "write 1.0e+3"]),
        ("learning_rate: -.5", ["'-.5'", "write -0.5"]),
        ("betas: [1e-3]", ["'1e-3'", "write 1.0e-3"]),
        ("seed: '0'", ["without quotes"]),
        ("seed: ٣", ["seed='٣'", "plain digits"]),
        ("revision: 123", ["revision=123", "in quotes"]),
        ("seed: " + "9" * 5000, ["f.yaml"]),
        ("beta: " + "9" * 400, ["too large"]),
        ("[" * 3000, ["f.yaml"]),
    ],
)
def test_what_yaml_and_people_read_differently(settings, text, words):
    with pytest.raises(Refusal) as refused:
        settings(file=text)
    message = str(refused.value)
    assert "f.yaml" in message or "did you mean" in message, message
    assert all(word in message for word in words) and "\n" not in message, message


@pytest.mark.parametrize(
    "text", ["beta: .inf", "beta: .NaN", "betas: [1, -.INF]", "learning_rate: .inf"]
)
def test_numbers_without_end(settings, text):
    with pytest.raises(Refusal, match=r"(inf|nan)\]?: must be (a )?numbers? above 0"):
        settings(file=text)


def test_what_everybody_reads_alike(settings):
    found = settings(
        file="# a comment\nbeta: .5\nbetas: [1., 2.5e-1, 3]\nseed: 10\nsteps: +7\nrevision: '010'\nlabel: auto\n"
    )
    assert (found["beta"], found["betas"], found["seed"], found["steps"]) == (
        0.5,
        [1.0, 0.25, 3.0],
        10,
        7,
    )
    assert found["revision"] == "010"
    assert settings(file="\ufeffbeta: 2\n")["beta"] == 2.0, (
        "a mark of the byte order is no part of a name"
    )
    assert strict_yaml.parse("a: {b: [true, False, ~, text, 0, -0.5]}", "x") == {
        "a": {"b": [True, False, None, "text", 0, -0.5]}
    }


@pytest.mark.parametrize(
    "given, words",
    [
        ([("seed", "1_000")], ["seed='1_000'", "plain digits"]),
        ([("seed", "٣")], ["seed='٣'", "plain digits"]),
        ([("seed", "010")], ["seed='010'"]),
        ([("seed", " 1")], ["seed=' 1'"]),
        ([("beta", "")], ["beta=''"]),
        ([("beta", "1_0.5")], ["beta='1_0.5'"]),
        ([("beta", "nan")], ["beta=nan", "above 0"]),
        ([("beta", "1e999")], ["beta=inf", "above 0"]),
        ([("beta", "NaN")], ["beta='NaN'"]),
        ([("betas", "[1,]")], ["betas='[1,]'", "a list"]),
        ([("betas", "")], ["betas=''", "a list"]),
        ([("betas", "[NaN]")], ["betas=[nan]"]),
        ([("betas", "[1.0, true]")], ["betas=[1.0, True]", "numbers above 0"]),
        ([("betas", '[{"a":1,"a":2}]')], ["betas="]),
        ([("betas", "[" * 5000)], ["a list"]),
        ([("Seed", "1")], ["Seed", "did you mean 'seed'"]),
        ([("seed ", "1")], ["'seed '", "did you mean 'seed'"]),
    ],
)
def test_texts_of_p_are_read_strictly(settings, given, words):
    with pytest.raises(Refusal) as refused:
        settings(*given)
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_later_file_wins_and_home_is_written_out(tmp_path, monkeypatch):
    cell = parameters.read_cell(notebook(tmp_path / "toy.ipynb", CELL))
    for name, text in (("a.yaml", "beta: 1\nsteps: 1"), ("b.yaml", "beta: 2")):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("HOME", "/home/me")
    given = [("data", "one=~/a.jsonl,two=~/b~c.jsonl"), ("model", "~/m")]
    values = parameters.collect(cell, given, [tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert (values["beta"], values["steps"], values["model"]) == (2.0, 1, "/home/me/m")
    assert values["data"] == "one=/home/me/a.jsonl,two=/home/me/b~c.jsonl"


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "notebook: 01_dpo_basics\ncross: {beta: [1]}\ncross: {steps: [5]}",
            ["line 3", "'cross' is given twice"],
        ),
        (
            "notebook: 01_dpo_basics\ncross:\n  beta: [1]\n  beta: [2]",
            ["line 4", "'beta' is given twice"],
        ),
        ("notebook: 01_dpo_basics\nseeds: [1, 010]", ["line 2", "010"]),
        ("notebook: 01_dpo_basics\nCross: {}", ["unknown key 'Cross'", "did you mean 'cross'"]),
    ],
)
def test_grids_are_read_as_strictly(tmp_path, text, words):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(Refusal) as refused:
        sweep.read(tmp_path / "g.yaml")
    assert all(word in str(refused.value) for word in ["g.yaml", *words]), refused.value


def test_a_name_twice_in_the_parameters_cell(tmp_path):
    with pytest.raises(Refusal, match="beta is given twice"):
        parameters.read_cell(notebook(tmp_path / "toy.ipynb", CELL + "\nbeta: float = 1.0"))
