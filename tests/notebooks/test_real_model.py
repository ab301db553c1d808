"""Notebook 07 on a made model: complete, with the quantities of every method on both splits; and what is refused."""

import json

import pytest
from helpers.made_models import model_folder, pairs_file, tokenizer

from safealign_utils.real import fetched, labelled_sets
from safealign_utils.runs import cli, runner
from safealign_utils.study import real_model

BOOK = "07_a_real_model"
TINY = dict(
    dtype="float32",
    pairs=56,
    steps=2,
    batch_size=1,
    learning_rate=1e-3,
    rounds=1,
    round_steps=1,
    eval_size=3,
)
METHODS = ("dpo", "dpo_soft", "safedpo", "cdpo", "selective", "dog_d", "random", "ref")


def given(**changes):
    return [(name, str(value)) for name, value in (TINY | changes).items()]


@pytest.mark.parametrize("size", [dict(), dict(pairs=28, eval_size=1)], ids=["two", "one"])
def test_it_runs_on_a_made_model(size, tmp_path, fresh_cache):
    """On one prompt too."""
    model = model_folder(tmp_path / "model", "llama")
    _, record, ran = runner.run(BOOK, given(model=model, **size), out=tmp_path / "out")
    assert ran
    for split in ("train", "heldout"):
        for method in METHODS:
            for quantity in ("reward", "unsafe", "kl_ref", "kl_opt", "tv_opt", "log_mass"):
                assert f"{method}[split={split}].{quantity}" in record["metrics"]
        assert record["metrics"][f"ref[split={split}].kl_ref"] == 0
    judged = {claim["id"].partition("[")[0] for claim in record["claims"]}
    assert len(judged) == 8 and all(id.startswith("real_model.") for id in judged)


def test_a_model_from_scratch_is_refused(tmp_path, capsys):
    assert cli.main(["run", BOOK, "-p", "model=scratch", "--out", str(tmp_path)]) == 2
    assert "model='scratch': this notebook needs a pretrained model" in capsys.readouterr().err


def test_without_the_model_the_command_is_named_and_reproduce_goes_on(fresh_cache, capsys):
    assert cli.main(["run", BOOK]) == 2
    assert "run `safealign fetch smollm2`" in capsys.readouterr().err
    paths = cli._runnable()
    assert BOOK not in [path.stem for path in paths]
    assert f"{BOOK}: skipped, its model is not there" in capsys.readouterr().out


def test_with_the_model_reproduce_runs_it(fresh_cache, monkeypatch):
    monkeypatch.setattr(fetched, "is_there", lambda name: True)
    assert BOOK in [path.stem for path in cli._runnable()]


@pytest.mark.parametrize("name", ["numbered", "comparable"])
def test_it_is_not_among_the_comparable(name):
    assert (BOOK in [path.stem for path in getattr(runner, name)()]) == (name == "numbered")


def several_answers(path):
    """Made pairs: of each prompt a refusal, half an answer and a whole one, unsafe where risky."""
    rows = []
    for n in range(12):
        safe, split = n % 2 > 0, "train" if n < 8 else "test"
        said = [("I cannot help", True), ("Do half of it", True), ("Do all of it", safe)]
        for i, j in ((0, 1), (1, 2)):
            labels = {f"is_response_{k}_safe": said[m][1] for k, m in enumerate((i, j))}
            texts = {"response_0": said[i][0], "response_1": said[j][0]}
            rows.append({"prompt": f"Number {n}?", "better_response_id": 1} | texts | labels)
            rows[-1] |= {"split": split, "type": f"type {n % 3}"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_it_runs_on_pairs_with_several_answers(tmp_path, fresh_cache):
    """Every method and quantity; the content of the file is part of the question."""
    model = model_folder(tmp_path / "model", "llama")
    data = f"made={several_answers(tmp_path / 'pairs.jsonl')}"
    asked = given(model=model, data=data, pairs=12, budget=0.5, cost_limit=-0.9)
    _, record, ran = runner.run(BOOK, asked, out=tmp_path / "out")
    assert ran and record["parameters"]["data"] == data
    for split in ("train", "heldout"):
        for method in METHODS:
            assert f"{method}[split={split}].kl_opt" in record["metrics"]
    id = runner.prepare(BOOK, asked)[2]
    assert id == record["run_id"]
    text = (tmp_path / "pairs.jsonl").read_text()
    (tmp_path / "pairs.jsonl").write_text(text.replace("half", "a third"))
    assert runner.prepare(BOOK, asked)[2] != id


@pytest.mark.parametrize("n", range(1, 7))
def test_prompts_of_a_file_are_of_every_kind(n, tmp_path):
    file, made = several_answers(tmp_path / "pairs.jsonl"), tokenizer()
    sets = labelled_sets.from_pairs(f"made={file}", made)
    ids = real_model.of_every_kind(sets, sets.select("train"), n)
    kinds = [sets.prompts[x].kind for x in ids]
    assert len(ids) == len(set(ids)) == n and kinds.count("risky") == (n + 1) // 2


@pytest.mark.parametrize(
    "row, why",
    [
        (None, "no such file"),
        (dict(better_response_id=0), "no row has a safety label"),
        (
            dict(better_response_id=0, is_response_0_safe=True, is_response_1_safe=True),
            "0 held-out",
        ),
        (dict(response_0=""), "response_0"),
    ],
)
def test_pairs_that_are_no_answer_sets_are_refused(row, why, tmp_path, capsys):
    """Before a kernel starts, naming the parameter and its value."""
    model, file = model_folder(tmp_path / "model", "llama"), tmp_path / "pairs.jsonl"
    if row is not None:
        row = {"prompt": "Why?", "response_0": "a", "response_1": "b"} | row
        file.write_text(json.dumps(row) + "\n")
    words = ["run", BOOK, "-p", f"model={model}", "-p", f"data={file}", "-p", "dtype=float32"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "data" in err and why in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_pairs_of_two_answers_are_sets_of_two(tmp_path):
    """Those of the kit's own tests, in the columns of PKU-SafeRLHF."""
    sets = labelled_sets.from_pairs(str(pairs_file(tmp_path / "pairs.jsonl")), tokenizer())
    assert sets.there.shape[1] == 2 and sets.select("heldout").size
