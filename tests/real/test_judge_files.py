"""Files for other people's judges, read back by readers that take what those judges take."""

import json
import os

import pandas as pd
import pytest

from safealign_utils.real import judge_files as a
from safealign_utils.real.prompts import load_prompts


def table(ids, turns=1):
    rows = [
        {
            "id": i,
            "prompt": f"Question {i}?",
            "turns": tuple([f"Question {i}?", "And then?"][:turns]),
            "answers": tuple([f"Answer {i}, “so”.\nLine two", f"Then {i}"][:turns]),
            "category": "alpaca_eval_helpful_base",
        }
        for i in ids
    ]
    return pd.DataFrame(rows)


# ------------------------------------------- what the judges read (fastchat common.py, arena-hard gen_judgment.py, alpaca_eval)


def fastchat_model_answers(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".jsonl"):
            with open(folder / name) as lines:
                found[name[:-6]] = {row["question_id"]: row for row in map(json.loads, lines)}
    return found


def arena_hard_answers(folder, key):
    return {
        f.stem: {row[key]: row for row in map(json.loads, f.read_text().splitlines())}
        for f in folder.glob("*.jsonl")
    }


def test_mt_bench(tmp_path):
    given = table([90, 81, 85], turns=2)
    path = a.write_mt_bench(tmp_path, given, "safedpo-0.5b")
    assert path == tmp_path / "safedpo-0.5b.jsonl"
    found = fastchat_model_answers(tmp_path)["safedpo-0.5b"]
    assert list(found) == [81, 85, 90], "FastChat keeps them sorted"
    for i in (81, 85, 90):
        one, two = found[i]["choices"][0]["turns"]
        assert (
            one == f"Answer {i}, “so”.\nLine two"
            and two == f"Then {i}"
            and len(found[i]["choices"]) == 1
        )
        assert found[i]["choices"][0]["index"] == 0 and found[i]["model_id"] == "safedpo-0.5b"
    assert set(found[81]) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert len({row["answer_id"] for row in found.values()}) == 3


def test_arena_hard(tmp_path):
    a.write_arena_hard(tmp_path, table(["0b", "0a"]), "m")
    found = arena_hard_answers(tmp_path, "uid")["m"]
    assert list(found) == ["0b", "0a"]
    for uid, row in found.items():
        assert row["messages"][-1]["content"]["answer"] == f"Answer {uid}, “so”.\nLine two"
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] and row["model"] == "m"
        assert row["messages"][0]["content"] == f"Question {uid}?"
    # its own utils/add_markdown_info.py reads the file so, to add `metadata`
    frame = pd.read_json(tmp_path / "m.jsonl", lines=True)
    assert frame.messages.map(lambda m: m[-1]["content"]["answer"]).str.startswith("Answer").all()


def test_arena_hard_before_v2(tmp_path):
    a.write_arena_hard_2024(tmp_path, table(["0b", "0a"]), "m")
    found = arena_hard_answers(tmp_path, "question_id")["m"]
    for i, turn in enumerate(found["0a"]["choices"][0]["turns"]):
        assert i == 0 and turn["content"] == "Answer 0a, “so”.\nLine two"
    assert found["0a"]["model_id"] == "m" and found["0a"]["answer_id"] != found["0b"]["answer_id"]


def test_alpaca_eval(tmp_path):
    path = a.write_alpaca_eval(tmp_path, table([1, 2]), "m")
    found = pd.DataFrame(json.loads(path.read_text()))
    assert path.name == "m.json" and found.columns.tolist() == [
        "instruction",
        "output",
        "generator",
        "dataset",
    ]
    assert (
        found.instruction.tolist() == ["Question 1?", "Question 2?"]
        and found.output.str.startswith("Answer").all()
    )
    assert set(found.generator) == {"m"} and set(found.dataset) == {"helpful_base"}


WRITERS = [a.write_mt_bench, a.write_arena_hard, a.write_arena_hard_2024, a.write_alpaca_eval]


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_answers_give_the_same_bytes(write, tmp_path):
    one = write(tmp_path / "one", table([1, 2]), "m").read_bytes()
    assert one == write(tmp_path / "two", table([1, 2]), "m").read_bytes()
    other = table([1, 2])
    other.at[1, "answers"] = ("Something else",)
    assert one != write(tmp_path / "three", other, "m").read_bytes()
    assert one != write(tmp_path / "four", table([1, 2]), "n").read_bytes()


@pytest.mark.parametrize("write", WRITERS)
def test_whole_or_not_at_all(write, tmp_path, monkeypatch):
    path = write(tmp_path, table([1]), "m")
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError):
        write(tmp_path, table([1, 2]), "m")
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("write", WRITERS)
def test_refusals(write, tmp_path):
    for name in ("org/model", "", "a b", "../m", "."):
        with pytest.raises(ValueError, match="model="):
            write(tmp_path, table([1]), name)
    with pytest.raises(ValueError, match="id 1 is there twice"):
        write(tmp_path, table([1, 1]), "m")
    with pytest.raises(ValueError, match="empty"):
        write(tmp_path, table([1]).iloc[:0], "m")
    with pytest.raises(ValueError, match="2 turns and 1 answers"):
        write(tmp_path, table([1], turns=2).assign(answers=[("only one",)]), "m")
    with pytest.raises(ValueError, match="has . turns; the format holds"):
        write(
            tmp_path, table([1], turns=2).map(lambda v: v * 2 if isinstance(v, tuple) else v), "m"
        )
    assert not any(tmp_path.iterdir())


def test_mt_bench_needs_its_own_ids(tmp_path):
    with pytest.raises(ValueError, match="integers"):
        a.write_mt_bench(tmp_path, table(["81", "82"], turns=2), "m")


def test_every_question_of_the_real_sets_gets_its_answer(real_data, tmp_path):
    def answered(name, file):
        t = load_prompts(f"{name}={real_data / file}")
        return t, t.assign(
            answers=[tuple(f"{t.id[i]}:{k}" for k in range(len(x))) for i, x in enumerate(t.turns)]
        )

    questions, given = answered("mt_bench", "mt_bench_80.jsonl")
    a.write_mt_bench(tmp_path / "mt", given, "m")
    found = fastchat_model_answers(tmp_path / "mt")["m"]
    for line in (real_data / "mt_bench_80.jsonl").read_text().splitlines():
        q = json.loads(line)
        assert found[q["question_id"]]["choices"][0]["turns"] == [
            f"{q['question_id']}:0",
            f"{q['question_id']}:1",
        ]
    questions, given = answered("arena_hard", "arena_hard_v0.1_500.jsonl")
    a.write_arena_hard(tmp_path / "arena", given, "m")
    found = arena_hard_answers(tmp_path / "arena", "uid")["m"]
    for line in (real_data / "arena_hard_v0.1_500.jsonl").read_text().splitlines():
        q = json.loads(line)
        assert found[q["uid"]]["messages"][0]["content"] == q["prompt"]
        assert found[q["uid"]]["messages"][-1]["content"]["answer"] == f"{q['uid']}:0"
    questions, given = answered("alpacaeval_129", "alpacaeval_helpful_129.json")
    rows = json.loads(a.write_alpaca_eval(tmp_path, given, "m").read_text())
    asked = [
        row["prompt"] for row in json.loads((real_data / "alpacaeval_helpful_129.json").read_text())
    ]
    assert [r["instruction"] for r in rows] == asked and [r["output"] for r in rows] == [
        f"{i}:0" for i in questions.id
    ]
