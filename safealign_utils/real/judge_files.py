"""Answers in the files that other people's judges read: MT-Bench, Arena-Hard, AlpacaEval. No judge runs here.

`answers` is a table with a row a prompt: id, prompt, turns and answers (tuples of texts, one a turn), category; see
`sampled.answer`. A file is written whole or not at all, and the same answers give the same bytes: ids of answers are
hashes of their content, and time stamps are 0, since no judge reads them. Put a file where the judge looks for it;
its name is the model's name there.
"""

import json
import re
from pathlib import Path

from ..engine import cache


def write_mt_bench(folder, answers, model):
    """`<model>.jsonl` for FastChat's `data/mt_bench/model_answer/`; returns the path.

    A line a question, in the order of question_id (an integer; 81 to 160 in FastChat's own file): question_id,
    answer_id, model_id, choices [{index, turns [text, text]}], tstamp. Source: github.com/lm-sys/FastChat,
    fastchat/llm_judge/gen_model_answer.py writes it, common.py (load_model_answers, run_judge_single) reads it.
    """
    _check(answers, model, most=2)
    if not all(isinstance(i, int) for i in _ids(answers)):
        raise ValueError(
            "answers: ids of MT-Bench are integers; load the questions from FastChat's question.jsonl"
        )
    lines = [_choices(i, model, list(said)) for i, said in zip(_ids(answers), answers.answers)]
    return _write(folder, model, sorted(lines, key=lambda line: line["question_id"]))


def write_arena_hard(folder, answers, model):
    """`<model>.jsonl` for Arena-Hard-Auto's `data/arena-hard-v0.1/model_answer/`; returns the path.

    The form of the repository since April 2025 (v2.0), used for the v0.1 questions too: uid, ans_id, model, messages
    [{role, content}] in which the assistant's content is {answer: text}, tstamp. What style control needs besides
    (`metadata`: lengths in tokens of tiktoken, counts of markdown) its own utils/add_markdown_info.py adds. Source:
    github.com/lmarena/arena-hard-auto, gen_answer.py and gen_judgment.py.
    """
    _check(answers, model)
    lines = []
    for ident, prompt, said in zip(_ids(answers), answers.prompt, answers.answers):
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": {"answer": said[0]}},
        ]
        ans_id = cache.digest(ident, model, list(said))
        lines.append(
            {"uid": ident, "ans_id": ans_id, "model": model, "messages": messages, "tstamp": 0.0}
        )
    return _write(folder, model, lines)


def write_arena_hard_2024(folder, answers, model):
    """The same for the repository before v2.0: question_id, answer_id, model_id, choices [{index, turns
    [{content}]}], tstamp. Source: github.com/lmarena/arena-hard-auto @ 01109e9930, gen_answer.py, gen_judgment.py."""
    _check(answers, model)
    said = [[{"content": y} for y in turns] for turns in answers.answers]
    return _write(
        folder, model, [_choices(i, model, turns) for i, turns in zip(_ids(answers), said)]
    )


def write_alpaca_eval(folder, answers, model):
    """`<model>.json` for `alpaca_eval --model_outputs`: a list of {instruction, output, generator, dataset}.

    Source: github.com/tatsu-lab/alpaca_eval, README.md and example/outputs.json. Returns the path. AlpacaEval compares
    with reference outputs of the same instructions: for the helpful 129 give it those (`--reference_outputs`).
    """
    _check(answers, model)
    parts = answers.category.str.removeprefix("alpaca_eval_")
    lines = [
        {"instruction": prompt, "output": said[0], "generator": model, "dataset": part}
        for prompt, said, part in zip(answers.prompt, answers.answers, parts)
    ]
    return cache.write_whole(
        Path(folder) / f"{model}.json", json.dumps(lines, ensure_ascii=False, indent=2) + "\n"
    )


def jsonl(rows):
    """The text of a .jsonl file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(folder, model, lines):
    return cache.write_whole(Path(folder) / f"{model}.jsonl", jsonl(lines))


def _choices(ident, model, turns):
    answer_id = cache.digest(ident, model, turns)
    choices = [{"index": 0, "turns": turns}]
    return {
        "question_id": ident,
        "answer_id": answer_id,
        "model_id": model,
        "choices": choices,
        "tstamp": 0.0,
    }


def _ids(answers):
    return answers.id.tolist()


def _check(answers, model, most=1):
    if not re.fullmatch(r"[\w.+-]*\w", model):
        raise ValueError(
            f"model={model!r}: it names the file; use letters, digits, '.', '_', '+' and '-'"
        )
    if answers.empty:
        raise ValueError("answers: the table is empty")
    if answers.id.duplicated().any():
        raise ValueError(
            f"answers: id {answers.id[answers.id.duplicated()].tolist()[0]!r} is there twice"
        )
    for ident, turns, said in zip(answers.id, answers.turns, answers.answers):
        if len(turns) != len(said) or not all(isinstance(y, str) for y in said):
            raise ValueError(
                f"answers: prompt {ident!r} has {len(turns)} turns and {len(said)} answers; they must match"
            )
        if len(turns) > most:
            raise ValueError(
                f"answers: prompt {ident!r} has {len(turns)} turns; the format holds {most}"
            )
