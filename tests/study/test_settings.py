"""What a person would misread in a YAML file or after -p is refused: the line or name, the value and the fix."""

import pytest
from helpers import ROOT
from helpers.toy import CELL, notebook

from safealign_utils.runs import sweep
from safealign_utils.study import inputs, strict_yaml
from safealign_utils.study import settings as parameters
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
        ("learning_rate: -.5", ["learning_rate=-0.5", "above 0"]),
        ("betas: [-1e-3]", ["betas=[-0.001]", "numbers above 0"]),
        ("betas: ['1']", ["betas=['1']", "numbers above 0"]),
        ("seed: 1e3", ["seed=1000.0", "plain digits"]),
        ("revision: 1e3", ["revision=1000.0", "in quotes"]),
        ("label: [auto]", ["label=['auto']", "one of auto, better"]),
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
    with pytest.raises(Refusal, match=r"(inf|nan)\]? in .*f.yaml: must be (a )?numbers? above 0"):
        settings(file=text)


def test_what_everybody_reads_alike(settings):
    found = settings(
        file="# a comment\nbeta: .5\nbetas: [1., 2.5e-1, 3, 1e-3, 3]\nseed: 10\nsteps: +7\nrevision: '010'\n"
        "label: auto\nlearning_rate: 1e-3"
    )
    assert (found["beta"], found["learning_rate"], found["seed"], found["steps"]) == (
        0.5,
        0.001,
        10,
        7,
    )
    assert found["betas"] == [1.0, 0.25, 3.0, 0.001], "a value given twice is no second measurement"
    assert all(type(found[name]) is float for name in ("beta", "learning_rate"))
    assert found["revision"] == "010"
    assert settings(file="\ufeffbeta: 2\n")["beta"] == 2.0, (
        "a mark of the byte order is no part of a name"
    )
    assert strict_yaml.parse("a: {b: [true, False, ~, text, 0, -0.5, -.5, 1e3, '1e3']}", "x") == {
        "a": {"b": [True, False, None, "text", 0, -0.5, -0.5, 1000.0, "1e3"]}
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


# ---------------------------------------------------------------- profiles


@pytest.mark.parametrize("name", ["small", "full"])
def test_a_profile_holds_what_a_cell_may_leave_open(name):
    """Both the same names, of values that are allowed and not empty, but for lists of further points."""
    filled = parameters.profile(name)
    assert set(filled) == set(parameters.profile("small")) <= set(parameters.FIELDS)
    assert all(value or isinstance(value, list) for value in filled.values())
    numbered = {path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    own = strict_yaml.read(ROOT / "notebooks" / "profiles" / f"{name}.yaml").get("notebooks", {})
    assert set(own) <= numbered
    assert all(set(values) <= set(filled) for values in own.values())


def test_a_notebook_has_its_own_length_in_a_profile(settings):
    assert settings()["steps"] == parameters.profile("small")["steps"] == 60
    cell = parameters.read_cell(ROOT / "notebooks" / "02_safedpo.ipynb")
    found = parameters.resolve(parameters.collect(cell, []), "02_safedpo")
    assert (found["steps"], found["pairs"], found["batch_size"]) == (40, 1500, 32)


@pytest.mark.parametrize(
    "text, words",
    [
        ("stpes: 1", ["'stpes'", "did you mean 'steps'"]),
        ("steps: many", ["steps='many'", "plain digits"]),
        (None, ["small.yaml", "cannot be read", "clone"]),
    ],
)
def test_a_broken_profile_is_refused(settings, tmp_path, monkeypatch, text, words):
    monkeypatch.setattr(parameters, "NOTEBOOKS", tmp_path)
    (tmp_path / "profiles").mkdir()
    if text:
        (tmp_path / "profiles" / "small.yaml").write_text(text)
    with pytest.raises(Refusal) as refused:
        settings()
    assert all(word in str(refused.value) for word in words), refused.value


# ---------------------------------------------------------------- notebooks of different parameters

WORLD = "\n".join(
    line for line in CELL.splitlines() if line.split(":")[0] not in ("model", "data", "label")
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two notebooks: one about the world alone, one on pairs that a user names."""
    notebook(tmp_path / "02_world.ipynb", WORLD)
    notebook(tmp_path / "08_pairs.ipynb", CELL)
    (tmp_path / "profiles").symlink_to(ROOT / "notebooks" / "profiles")
    monkeypatch.setattr(parameters, "NOTEBOOKS", tmp_path)
    return tmp_path


def test_a_parameter_of_another_notebook_is_refused_with_its_name(folder):
    cell = parameters.read_cell(folder / "02_world.ipynb")
    words = "data='p.jsonl': 02_world has no parameter data; 08_pairs has"
    with pytest.raises(Refusal, match=words):
        parameters.collect(cell, [("data", "p.jsonl")], notebook="02_world")
    (folder / "f.yaml").write_text("beta: 2\ndata: p.jsonl")
    with pytest.raises(Refusal, match=words):
        parameters.collect(cell, [], [folder / "f.yaml"], "02_world")
    with pytest.raises(Refusal, match="no such parameter; it has profile"):
        parameters.collect(cell, [("keep", "0.4")], notebook="02_world")
    both = [("beta", "2"), ("label", "better")]
    assert parameters.collect(parameters.read_cell(folder / "08_pairs.ipynb"), both)["beta"] == 2.0


def test_without_data_and_model_it_is_the_world(folder):
    found = parameters.resolve(
        parameters.collect(parameters.read_cell(folder / "02_world.ipynb"), [])
    )
    assert not {"data", "model", "label"} & set(found)
    assert inputs.check(found) == {} == inputs.commits(found)
    assert parameters.from_notebook({"profile": "small", "seed": 1, "seeds": 0})["seeds"] == 1
    with pytest.raises(Refusal, match="cost_limit=-9: the lowest"):
        parameters.from_notebook({"profile": "small", "seed": 1, "seeds": 1, "cost_limit": -9.0})
    with pytest.raises(Refusal, match="layer=9"):
        pool = {"pool": "near", "pairs": 0, "layer": 9}
        parameters.from_notebook({"profile": "small", "seed": 1, "seeds": 1, **pool})


# ---------------------------------------------------------------- bounds, and what has no effect
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"


@pytest.mark.parametrize(
    "given, words",
    [
        ([("seeds", "2000000000")], ["seeds=2000000000", "at most 10000"]),
        ([("batch_size", str(2**63))], [f"batch_size={2**63}", "at most 10000000"]),
        ([("pairs", "10000001")], ["pairs=10000001", "at most 10000000"]),
        ([("seed", "9" * 100_000)], ["seed='999", "plain digits"]),
        ([("beta", "9" * 100_000)], ["beta=inf", "above 0"]),
        ([("learning_rate", "1e-400")], ["learning_rate='1e-400'", "nearer to 0", "write 0"]),
        ([("learning_rate", "0." + "0" * 999 + "1")], ["learning_rate='0.000", "nearer to 0"]),
        ([("betas", "[1e-400, 1]")], ["betas='1e-400'", "nearer to 0"]),
        ([("betas", ",".join(["1"] * 1001))], ["betas=[1.0, 1.0", "1,001 entries"]),
        ([("revision", "a\nb")], ["revision='a\\nb'", "'\\n'", "no printable character"]),
        ([("revision", "a\x1b[2J")], ["\\x1b", "no printable character"]),
        ([("revision", "x" * 20_000)], ["revision='xxx", "20,000 characters"]),
        ([("data", "a\0b")], ["data='a\\x00b'", "no printable character"]),
        ([("beta", "1"), ("beta", "2")], ["beta='2'", "-p gives beta twice, '1' and '2'"]),
        ([("x" * 10**6, "1")], ["no such parameter"]),
    ],
)
def test_no_value_is_larger_than_anybody_means(settings, given, words):
    with pytest.raises(Refusal) as refused:
        settings(*given)
    assert all(word in str(refused.value) for word in words), refused.value
    assert len(str(refused.value)) < 2000 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("steps: 1\nlearning_rate: 1e-400", ["line 2", "'1e-400'", "nearer to 0"]),
        (f"seed: {'9' * 5000}", ["line 1", "5,000 digits is too large"]),
        (BOMB, ["line 1", "anchors"]),
        ("a: " + "[" * 21 + "]" * 21, ["line 1", "nested more than 20 times"]),
        ("- " * 30 + "a", ["line 1", "nested more than 20 times"]),
        ("beta: 1\nrevision: a\0b", ["line 2", "'\\x00' is no character of a text"]),
        ('revision: "a\\0b"', ["revision='a\\x00b'", "no printable character"]),
        ("# " + "x" * 400_000, ["is too large", "at most 300,000 are read"]),
        ("revision: 2024-02-30", ["line 1", "2024-02-30", "date"]),
        ("revision: 2024-13-45T99:99:99Z", ["line 1", "date"]),
    ],
)
def test_a_file_of_parameters_is_bounded_before_it_is_built(settings, text, words):
    with pytest.raises(Refusal) as refused:
        settings(file=text)
    message = str(refused.value)
    assert "f.yaml" in message and all(word in message for word in words), message
    assert len(message) < 2000 and "\n" not in message


OWN = ROOT / "notebooks" / "08_your_own_pairs.ipynb"


@pytest.mark.parametrize(
    "given, why",
    [
        ("reward_model=a/b", "there is no data"),
        ("eval_prompts=xstest", "there is no data"),
        ("data=p.jsonl sft_rate=1e-4", "sft_steps=0 does no fine-tuning"),
        ("data=p.jsonl heldout_categories=a heldout=0.3", "heldout_categories says"),
    ],
)
def test_a_value_without_an_effect_is_refused(given, why, capsys):
    cell = parameters.read_cell(OWN)
    given = [tuple(word.split("=")) for word in given.split()]

    def check(words):
        values = parameters.collect(cell, words)
        parameters.check_used(parameters.resolve(values), cell, values, words)

    name = given[-1][0]
    with pytest.raises(Refusal, match=f"^{name}=.*: has no effect, as {why}.*leave {name} out"):
        check(given)
    default = str(cell[name][1])
    check([*given[:-1], (name, default)] if default else given[:-1])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "given, why",
    [
        ("data=p.jsonl reward_model=a/b cost_model=probe scorer_steps=9", "neither reward_model"),
        ("data=p.jsonl parts=cdpo delta=5", "parts has no safedpo"),
        ("data=p.jsonl parts=dpo keep=0.2", "parts has no selective"),
        ("data=p.jsonl parts=dpo ridge=2", "parts has no dog"),
        ("data=p.jsonl parts=safedpo,dog cost_limit=1", "parts has no cdpo"),
        ("data=p.jsonl sft_rate=1e-4", "sft_steps=0 does no fine-tuning"),
    ],
)
def test_a_value_of_what_is_left_out_is_said_once(given, why, tmp_path, capsys):
    """Of a file too, which may serve several runs."""
    cell = parameters.read_cell(OWN)
    *given, (name, text) = [tuple(word.split("=")) for word in given.split()]
    (tmp_path / "f.yaml").write_text(f"{name}: {text}")
    values = parameters.collect(cell, given, [tmp_path / "f.yaml"])
    settings = parameters.resolve(values)
    parameters.check_used(settings, cell, values, given)
    parameters._say.cache_clear()
    for _ in range(2):
        parameters.say_unused(settings, cell, values)
    said = capsys.readouterr().err
    assert said.startswith(f"{name}=") and f": has no effect, as {why}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "source, words",
    [
        ("a: int = " + "-" * 50_000 + "1", "in the parameters cell|is no Python"),
        ("a: int = " + "(" * 5000, "is no Python"),
        ("a: int = 1" + "+1" * 20_000, "in the parameters cell|is no Python"),
        ("a: int = a" + ".a" * 20_000, "in the parameters cell|is no Python"),
        ("a: int = " + "9" * 5000, "is no Python"),
        ("a: int = 1\0", "is no Python"),
        ("a: list = {[]: 1}", "in the parameters cell"),
        ("a: int = 1 # " + "x" * 70_000, "70,013 characters, at most 65,536 are read"),
    ],
)
def test_a_parameters_cell_of_any_source_is_a_refusal(tmp_path, source, words):
    with pytest.raises(Refusal, match=words):
        parameters.read_cell(notebook(tmp_path / "toy.ipynb", source))
