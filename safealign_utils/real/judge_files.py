"""Answers in the files that other people's judges read: MT-Bench, Arena-Hard, AlpacaEval.

No judge runs here. `answers` has a row a prompt: id, prompt, turns and answers (tuples of texts,
one a turn), category; see `sampling.answer`. A file is written whole or not at all, and the same
answers give the same bytes: ids are hashes of content, and time stamps, which no judge reads, are
0. Put a file where the judge looks for it; its name is the model's name there. All writers return
its path and raise ValueError for a table that the format cannot hold.
"""

import json
import re
from pathlib import Path

from ..engine import boundary, cache
from ..engine.boundary import Refusal, shown


def write_mt_bench(folder, answers, model):
    """`<model>.jsonl` for FastChat's `data/mt_bench/model_answer/`, in the order of question_id.

    A line a question: question_id (an integer; 81 to 160 in FastChat's own file), answer_id,
    model_id, choices [{index, turns [text, text]}], tstamp. Source: github.com/lm-sys/FastChat,
    fastchat/llm_judge/gen_model_answer.py writes it, common.py (load_model_answers,
    run_judge_single) reads it.
    """
    ids = _checked_ids(answers, model, most=2)
    if not all(isinstance(i, int) for i in ids):
        fix = "load the questions from FastChat's question.jsonl"
        raise Refusal(f"answers: ids of MT-Bench are integers; {fix}")
    rows = [_choices(i, model, list(said)) for i, said in zip(ids, answers.answers)]
    return _write(folder, model, sorted(rows, key=lambda row: row["question_id"]))


def write_arena_hard(folder, answers, model):
    """`<model>.jsonl` for Arena-Hard-Auto's `data/arena-hard-v0.1/model_answer/`.

    The form since April 2025 (v2.0), used for the v0.1 questions too: uid, ans_id, model, messages
    [{role, content}] in which the assistant's content is {answer: text}, tstamp. `metadata` for
    style control its own utils/add_markdown_info.py adds. Source:
    github.com/lmarena/arena-hard-auto, gen_answer.py and gen_judgment.py.
    """
    rows = []
    ids = _checked_ids(answers, model)
    for i, prompt, said in zip(ids, answers.prompt, answers.answers):
        reply = {"role": "assistant", "content": {"answer": said[0]}}
        row = {"uid": i, "ans_id": cache.digest(i, model, list(said)), "model": model}
        row["messages"] = [{"role": "user", "content": prompt}, reply]
        rows.append(row | {"tstamp": 0.0})
    return _write(folder, model, rows)


def write_arena_hard_2024(folder, answers, model):
    """The same before v2.0: question_id, answer_id, model_id, choices, tstamp.

    A choice is {index, turns [{content}]}. Source: github.com/lmarena/arena-hard-auto @ 01109e9930,
    gen_answer.py, gen_judgment.py.
    """
    ids = _checked_ids(answers, model)
    said = [[{"content": y} for y in turns] for turns in answers.answers]
    return _write(folder, model, [_choices(i, model, turns) for i, turns in zip(ids, said)])


def write_alpaca_eval(folder, answers, model):
    """`<model>.json` for `alpaca_eval --model_outputs`: {instruction, output, generator, dataset}.

    Source: github.com/tatsu-lab/alpaca_eval, README.md and example/outputs.json. AlpacaEval
    compares with reference outputs of the same instructions: for the helpful 129 give it those
    (`--reference_outputs`).
    """
    _checked_ids(answers, model)
    parts = answers.category.str.removeprefix("alpaca_eval_")
    rows = [
        {"instruction": prompt, "output": said[0], "generator": model, "dataset": part}
        for prompt, said, part in zip(answers.prompt, answers.answers, parts)
    ]
    text = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    return cache.write_whole(Path(folder) / f"{model}.json", text)


def jsonl(rows):
    """The text of a .jsonl file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(folder, model, rows):
    return cache.write_whole(Path(folder) / f"{model}.jsonl", jsonl(rows))


def _choices(i, model, turns):
    answer_id = cache.digest(i, model, turns)
    row = {"question_id": i, "answer_id": answer_id, "model_id": model}
    return row | {"choices": [{"index": 0, "turns": turns}], "tstamp": 0.0}


def _checked_ids(answers, model, most=1):
    """The ids of a table of answers, which must have at most `most` turns a prompt."""
    with boundary.reading("answers", "give a table of `sampling.answer`"):
        return _ids(answers, model, most)


def _ids(answers, model, most):
    if not isinstance(model, str) or not re.fullmatch(r"[\w.+-]{0,199}\w", model):
        fix = "use letters, digits, '.', '_', '+' and '-'"
        raise Refusal(f"model={shown(model)}: it names the file; {fix}")
    if answers.empty:
        raise Refusal("answers: the table is empty")
    if answers.id.duplicated().any():
        twice = answers.id[answers.id.duplicated()].tolist()[0]
        raise Refusal(f"answers: id {shown(twice)} is there twice")
    for i, turns, said in zip(answers.id, answers.turns, answers.answers):
        if isinstance(i, bool) or not isinstance(i, (int, str, float)):
            raise Refusal(f"answers: an id must be a text or a number, found {shown(i)}")
        what = f"answers: prompt {shown(i)} has {len(turns)} turns"
        if len(turns) != len(said) or not all(isinstance(y, str) for y in said):
            raise Refusal(f"{what} and {len(said)} answers; they must match")
        if len(turns) > most:
            raise Refusal(f"{what}; the format holds {most}")
    return answers.id.tolist()


WRITERS = {
    "mt_bench": write_mt_bench,
    "arena_hard": write_arena_hard,
    "arena_hard_2024": write_arena_hard_2024,
    "alpaca_eval": write_alpaca_eval,
}
