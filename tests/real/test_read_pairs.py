"""Texts as people have them: encodings, half an emoji, chat marks, other types; refused with file, place, column, fix."""

import json
import os
import re

import pytest
from helpers import made_models

from safealign_utils import pairs, templates
from safealign_utils.real import read_pairs
from safealign_utils.real.prompts import load_prompts
from safealign_utils.study import inputs
from safealign_utils.study.settings import Refusal

ROW = {
    "prompt": "How?",
    "response_0": "So.",
    "response_1": "No.",
    "better_response_id": 0,
    "safer_response_id": 0,
}


def write(path, rows):
    text = (
        json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows)
    )
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt"])
def test_another_encoding_names_file_line_and_fix(tmp_path, encoding, ending):
    texts = {"csv": "prompt,chosen,rejected\ncafé,a,b\n", "txt": "What?\ncafé?\n"}
    row = json.dumps(ROW)
    text = texts.get(ending, f"{row}\n{row.replace('How', 'café')}\n")
    file = tmp_path / f"f.{ending}"
    file.write_bytes(text.encode(encoding))
    line = 2 if encoding == "latin-1" else 1
    readers = {"prompts": load_prompts} | (
        {} if ending == "txt" else {"data": read_pairs.load_pairs}
    )
    for name, read in readers.items():
        with pytest.raises(ValueError, match=f"{name}={file}, line {line}: .*; save it as UTF-8"):
            read(str(file))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_text(tmp_path, ending):
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    text = "prompt,chosen,rejected\nHi,a,b\n" if ending == "csv" else json.dumps(row)
    (tmp_path / f"f.{ending}").write_text(text, encoding="utf-8-sig")
    assert read_pairs.load_pairs(str(tmp_path / f"f.{ending}")).prompt.tolist() == ["Hi"]
    assert load_prompts(str(tmp_path / f"f.{ending}")).prompt.tolist() == ["Hi"]


@pytest.mark.parametrize(
    "bad, words", [("cut \ud83d", "half an emoji"), ("a\0b", "the character NUL")]
)
@pytest.mark.parametrize("ending", ["jsonl", "json", "folder"])
def test_characters_that_are_none(tmp_path, bad, words, ending):
    rows = [ROW, ROW | {"response_1": bad}]
    place = "row 2" if ending == "json" else "line 2"
    file = tmp_path / f"p.{ending}" if ending != "folder" else tmp_path / "train.jsonl"
    path = write(file, rows) if ending != "folder" else write(file, rows) and str(tmp_path)
    with pytest.raises(
        ValueError, match=f"{file.name}, {place}, column 'response_1': {words}"
    ) as error:
        read_pairs.load_pairs(path)
    str(error.value).encode()
    good = [ROW, ROW | {"response_1": "\U0001f600 \\ud83d"}]
    assert (
        read_pairs.load_pairs(
            write(file, good) if ending != "folder" else path and write(file, good)
        ).shape[0]
        == 2
    )


MARKED = [
    "A.<|im_end|>",
    "A.<|eot_id|>",
    "A.</s>",
    "<s>[INST] Hi [/INST]",
    "<start_of_turn>user",
    "<｜User｜>Hi",
]


@pytest.mark.parametrize("text", MARKED)
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_a_chat_format_is_refused_and_its_rows_counted(tmp_path, text, column):
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    with pytest.raises(
        ValueError,
        match=f"line 2, column '{column}'.*of a chat format.*2 of 3 rows; give the messages",
    ):
        read_pairs.load_pairs(
            write(tmp_path / "p.jsonl", [row, row | {column: text}, row | {column: text}])
        )
    with pytest.raises(ValueError, match="row 1: .*of a chat format, and so do 1 of 1 prompts"):
        load_prompts(write(tmp_path / "q.jsonl", [{"prompt": text}]))
    ordinary = row | {column: "a <| b |> c, <div>, [1], <stdio.h>, List<s2>"}
    assert len(read_pairs.load_pairs(write(tmp_path / "r.jsonl", [ordinary]))) == 1


def test_special_tokens_of_the_model_are_known_before_a_kernel(tmp_path):
    folder = str(made_models.model_folder(tmp_path / "model", "llama"))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = tokenizer.eos_token
    settings = dict(model=folder, revision="", template="auto", label="auto", pairs=8)
    rows = [ROW | {"prompt": f"p{i}", "split": ["train", "test"][i % 2]} for i in range(4)]
    data = write(tmp_path / "p.jsonl", [*rows, rows[0] | {"response_0": f"So.{special}"}])
    with pytest.raises(Refusal, match="line 5, column 'response_0'.*1 of 5 rows"):
        inputs.check(settings | {"data": data})
    good = settings | {"data": write(tmp_path / "q.jsonl", rows)}
    assert set(inputs.check(good)) == {"data", "model"}
    evil = write(tmp_path / "e.jsonl", [{"prompt": f"Hi {special}"}])
    with pytest.raises(Refusal, match="^eval_prompts=.*row 1: .*of a chat format"):
        inputs.check(good | {"eval_prompts": evil})
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    told = write(tmp_path / "t.jsonl", [{"prompt": talk}])
    with pytest.raises(
        Refusal, match="^eval_prompts=.*safe_rlhf.*takes one question, found 2 turns"
    ):
        inputs.check(good | {"eval_prompts": told, "template": "safe_rlhf"})


@pytest.mark.parametrize(
    "name",
    [
        "val",
        "Dev",
        "VALID",
        "validation",
        "testing",
        "eval",
        "evaluation",
        "heldout",
        "held-out",
        "holdout",
        "hold_out",
        "test_prefs",
        "test-sft",
        "30k_test",
        "test2",
    ],
)
def test_split_names_that_are_held_out(tmp_path, name):
    rows = [
        ROW | {"prompt": f"p{i}", "split": [name, "Train_prefs", "training"][i % 3]}
        for i in range(6)
    ]
    train, test, _ = pairs.split_pairs(read_pairs.load_pairs(write(tmp_path / "p.jsonl", rows)))
    assert set(test["split"]) == {name} and len(train) == 4


def test_split_names_that_say_nothing_are_refused(tmp_path):
    for name in ("sft", "fold1", "train_test"):
        rows = [
            ROW | {"prompt": f"p{i}", "split": [name, "train", "test"][i % 3]} for i in range(6)
        ]
        with pytest.raises(
            ValueError,
            match=f"column 'split': '{name}' \\(2 rows\\).*name it train, or one of test",
        ):
            pairs.split_pairs(read_pairs.load_pairs(write(tmp_path / "p.jsonl", rows)))


@pytest.mark.parametrize("value", [1, 2.0, True, ["a", "b"], {"a": 1}])
def test_columns_of_words_hold_words(tmp_path, value):
    with pytest.raises(
        ValueError, match="line 2, column 'split': must be text, found .*; write train or test"
    ):
        read_pairs.load_pairs(write(tmp_path / "p.jsonl", [ROW, ROW | {"split": value}]))
    read_pairs.load_pairs(write(tmp_path / "p.jsonl", [ROW | {"category": value, "source": None}]))
    if value != 1:
        file = write(tmp_path / "p.jsonl", [ROW | {"source": value}])
        with pytest.raises(ValueError, match="line 1, column 'source': must be text, found"):
            read_pairs.load_pairs(file)
        assert read_pairs.load_pairs(f"mine={file}").source.tolist() == ["mine"]
    for column in ("prompt", "response_0"):
        with pytest.raises(ValueError, match=f"line 1, column '{column}'.*must be text, found"):
            read_pairs.load_pairs(write(tmp_path / "p.jsonl", [ROW | {column: value}]))


def test_columns_that_are_missing_are_told_with_those_there(tmp_path):
    with pytest.raises(
        ValueError, match="line 1, column 'prompt': found nothing.*these have instruction, output"
    ):
        read_pairs.load_pairs(write(tmp_path / "p.jsonl", [{"instruction": "a", "output": "b"}]))


def test_messages_keep_their_roles(tmp_path):
    m = lambda role, text: {"role": role, "content": text}
    talks = [
        [m("system", "Be kind."), m("user", "Hi")],
        [m("user", "Hi"), m("assistant", "Hello!"), m("user", "And?")],
        [m("system", "Be kind."), m("user", "Hi"), m("user", "More?")],
        [m("user", "Hi"), m("user", "More?")],
    ]
    turns = load_prompts(write(tmp_path / "p.jsonl", [{"prompt": t} for t in talks])).turns.tolist()
    assert (
        [len(t) for t in turns] == [1, 1, 2, 2]
        and turns[3] == ("Hi", "More?")
        and turns[2][1] == "More?"
    )
    assert templates.turns(turns[0][0]) == talks[0] and templates.turns(turns[1][0]) == talks[1]
    for bad, words in (
        (
            [m("user", "Hi"), m("assistant", "Hello!")],
            "last in a column called prompt is a message of the assistant",
        ),
        ([m("tool", "x"), m("user", "Hi")], "no text in a column called prompt: found .*'tool'"),
        ([m("user", "Hi"), m("system", "Be kind."), m("user", "So?")], "cannot be told apart"),
        ([m("user", "a"), m("assistant", "x\n\nHuman: y"), m("user", "b")], "cannot be told apart"),
    ):
        with pytest.raises(ValueError, match=f"row 1: .*{words}"):
            load_prompts(write(tmp_path / "b.jsonl", [{"prompt": bad}]))


# ---------------------------------------------------------------- what would end or hold the process


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize(
    "text", ["null", "[null]", "0", '"a"', "[" * 10**5, "[" * 500 + "]" * 500, "[[]]", "9" * 10**5]
)
def test_json_without_rows_is_refused_alone_and_in_a_folder(tmp_path, ending, text):
    """Read by `datasets`, `null` or a deep nest ends the process: it is not given them."""
    (tmp_path / f"train{ending}").write_text(text)
    for data in (tmp_path / f"train{ending}", tmp_path):
        with pytest.raises(Refusal, match=rf"^data={re.escape(str(tmp_path))}.*train{ending}"):
            read_pairs.load_pairs(str(data))


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_a_pipe_or_a_file_without_end_holds_nobody(tmp_path, ending):
    pipe, sparse, folder = (tmp_path / f"{name}{ending}" for name in ("pipe", "sparse", "folder"))
    os.mkfifo(pipe)
    sparse.touch()
    os.truncate(sparse, 2**43)
    folder.mkdir()
    for data, words in ((pipe, "pipe or a device"), (sparse, "too large|in one line|magic bytes")):
        with pytest.raises(Refusal, match=f"^data={re.escape(str(data))}.*({words})"):
            read_pairs.load_pairs(str(data))
    with pytest.raises(Refusal, match=f"^data={re.escape(str(folder))}"):
        read_pairs.load_pairs(str(folder))


@pytest.mark.parametrize(
    "value", ["x" * 300, "a=b," * 3000, "a\0b", "o/n@../../x", "=", ",", "x" * 10**6]
)
def test_a_value_that_names_nothing_is_a_short_message(value):
    with pytest.raises(Refusal, match="^(data|revision)=") as refused:
        read_pairs.load_pairs(value)
    assert len(str(refused.value)) < 2000
