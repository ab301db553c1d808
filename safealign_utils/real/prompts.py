"""Prompt sets by name, from the hub or a file: one table with the columns prompt, turns, category, unsafe, id.

`SETS` says where each set is published, under which licence, and whether its prompts are meant as unsafe. No prompt
is shipped with the kit. Safety sets hold offensive and dangerous requests: keep what they draw from a model in files.
"""

import csv
import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .. import templates
from .hub import json_rows, lines
from .sources import sources

TEXT = (
    "prompt",
    "turns",
    "forbidden_prompt",
    "goal",
    "Behavior",
    "instruction",
    "question",
    "text",
)
CATEGORY = ("harm_area", "SemanticCategory", "category", "type", "dataset")
ID = ("id", "uid", "question_id", "prompt_id", "BehaviorID")
CONTEXT = ("ContextString", "context")


@dataclass(frozen=True)
class PromptSet:
    """Where a set is published. `hub` "" = not stated: a file is needed, and `file` says which.

    `rows` is what the file holds; `unsafe` whether the prompts are meant so (None: see `load_prompts`); `revision` a
    commit of the hub repository as public code or pages name it, "" where none was found.
    """

    file: str
    rows: int | None
    licence: str
    unsafe: bool | None
    hub: str = ""
    split: str = "train"
    config: str = ""
    revision: str = ""
    keep: tuple = ()  # only rows of these categories


SETS = {
    "xstest": PromptSet(  # columns id, prompt, type, label (safe, unsafe), focus, note
        "github.com/paul-rottger/exaggerated-safety: xstest_prompts.csv",
        450,
        "CC BY 4.0",
        None,
        hub="Paul/XSTest",
    ),
    "harmbench": PromptSet(  # Behavior, FunctionalCategory, SemanticCategory, Tags, ContextString, BehaviorID
        "github.com/centerforaisafety/HarmBench: data/behavior_datasets/harmbench_behaviors_text_all.csv",
        400,
        "MIT",
        True,
        hub="walledai/HarmBench",
        config="standard",  # gated; this part holds 200 of the 400
    ),
    "strongreject": PromptSet(  # category, source, forbidden_prompt; on the hub prompt, category, source (gated)
        "github.com/alexandrasouly/strongreject: strongreject_dataset/strongreject_dataset.csv",
        313,
        "MIT",
        True,
        hub="walledai/StrongREJECT",
    ),
    "advbench": PromptSet(  # goal, target; on the hub prompt, target (gated)
        "github.com/llm-attacks/llm-attacks: data/advbench/harmful_behaviors.csv",
        520,
        "MIT",
        True,
        hub="walledai/AdvBench",
    ),
    "simple_safety_tests": PromptSet(  # id, prompt, harm_area, category
        "github.com/bertiev/SimpleSafetyTests: SimpleSafetyTests - test cases.csv",
        100,
        "CC BY-NC 4.0",
        True,
        hub="Bertievidgen/SimpleSafetyTests",
        split="test",
        revision="98223c5d8c4059c8f4d8fe2fec8720ee8a20d3c5",
    ),
    "safe_rlhf_83": PromptSet(  # prompt, category; provocations as well as requests, so not called unsafe one by one
        "github.com/PKU-Alignment/safe-rlhf: safe_rlhf/evaluate/gpt4/problem.json",
        83,
        "not stated",
        None,
    ),
    "alpacaeval_129": PromptSet(  # prompt, category; the part helpful_base of AlpacaEval's instruction, dataset
        "github.com/line/sacpo: asset/helpful_problem.json",
        129,
        "CC BY-NC 4.0 (AlpacaEval)",
        False,
        keep=("helpful_base", "alpaca_eval_helpful_base"),
    ),
    "mt_bench": PromptSet(  # question_id, category, turns; on the hub prompt (a list), prompt_id, category, reference
        "github.com/lm-sys/FastChat: fastchat/llm_judge/data/mt_bench/question.jsonl",
        80,
        "Apache-2.0",
        False,
        hub="HuggingFaceH4/mt_bench_prompts",
        revision="e3a795c5e9a82ee40611c416b8a7786c73198991",
    ),
    "arena_hard": PromptSet(  # uid, category, cluster, prompt; on the hub question_id, category, cluster, turns
        "github.com/lmarena/arena-hard-auto: data/arena-hard-v0.1/question.jsonl",
        500,
        "Apache-2.0",
        False,
        hub="lmarena-ai/arena-hard-auto-v0.1",
        revision="2a69efe86cff85c593cfd4c2b4491c128e52c6f1",
    ),
    "beavertails": PromptSet(  # prompt, response, category, is_safe; its labels are of answers, not of prompts
        "huggingface.co/datasets/PKU-Alignment/BeaverTails: round0/30k/test.jsonl.gz (unpack it)",
        None,
        "CC BY-NC 4.0",
        None,
        hub="PKU-Alignment/BeaverTails",
        split="30k_test",
        revision="8401fe609d288129cc684a9b3be6a93e41cfe678",
    ),
}


def load_prompts(name, *, path="", revision="", limit=0, tokenizer=None):
    """A prompt set as a table: prompt (text), turns (tuple of texts), category (text), unsafe (boolean or NA), id.

    `name` is one of SETS, the path of a file (.txt: a prompt a line; .csv, .json, .jsonl with a column like
    `prompt`), or `set=path`; `path` gives the set's file instead of the hub, `revision` another commit of the hub
    than the table's. A list of messages is a conversation: what the user says after the last answer
    in it is asked, a turn a message; the rest (system, answers) stands before the first of these as
    a dialogue. `limit` > 0 keeps at most so many, the first of every category in turn.
    `unsafe`: what SETS says for the whole set, else the row's `label` (safe, unsafe), else XSTest's rule that a type
    beginning with contrast_ is unsafe, else NA. Rows that come with a response (pairs) give each prompt once. A
    HarmBench context stands before its behaviour as in HarmBench's own baselines. MT-Bench has two turns, `prompt`
    being the first. Texts hold no mark of a chat format, nor a special token of `tokenizer` where
    one is given. Raises ValueError naming the file, the row, the column and the reason.
    """
    if not path and name not in SETS:
        if len(named := sources(name, "prompts")) > 1:
            raise ValueError(
                f"prompts={name!r}: names {len(named)} files; give one, as set=path or as a path"
            )
        ((own, file),) = named
        if own or Path(file).suffix or Path(file).exists():
            name, path = own or Path(file).stem, file
    chosen = SETS.get(name)
    if chosen is None and not path:
        near = difflib.get_close_matches(name, SETS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"prompts={name!r}: no set of this name{hint}; choose {', '.join(SETS)}, or give a file"
        )
    if not isinstance(limit, int) or limit < 0:
        raise ValueError(f"limit={limit!r}: a whole number of prompts, or 0 for all")
    place = path or name
    rows = _file_rows(path) if path else _hub_rows(name, chosen, revision)
    table = _table(
        rows, place, chosen or PromptSet("", None, "", None), templates.marker_pattern(tokenizer)
    )
    if limit:
        turn = table.groupby("category").cumcount().sort_values(kind="stable").index[:limit]
        table = table.loc[turn.sort_values()].reset_index(drop=True)
    return table


def _table(rows, place, chosen, marks):
    out, seen, marked = [], set(), []
    for number, row in enumerate(rows, start=1):
        bad = lambda reason, number=number: ValueError(f"prompts={place}, row {number}{reason}")
        turns = _turns(row, bad)
        if context := _first(row, CONTEXT):
            if not isinstance(context, str):
                raise bad(f": the context must be text, found {repr(context)[:40]}")
            turns[0] = f"{context}\n\n---\n\n{turns[0]}"
        category = _first(row, CATEGORY)
        if isinstance(category, dict):  # BeaverTails: a flag a category
            category = [c for c, yes in category.items() if yes]
        if isinstance(category, list):
            category = ", ".join(map(str, category))
        if (
            chosen.keep
            and category not in chosen.keep
            or (_holds_response(row) and tuple(turns) in seen)
        ):
            continue
        seen.add(tuple(turns))
        marked += [(bad, turn, found[0]) for turn in turns if (found := marks.search(turn))][:1]
        ident = _first(row, ID)
        out.append(
            {
                "prompt": turns[0],
                "turns": tuple(turns),
                "category": str(category or ""),
                "unsafe": _unsafe(row, chosen),
                "id": number if ident is None else _number_or_text(ident),
            }
        )
    if not out:
        raise ValueError(
            f"prompts={place}: holds no prompts"
            + (f" of {' or '.join(chosen.keep)}" * bool(chosen.keep))
        )
    if marked:
        bad, text, mark = marked[0]
        raise bad(
            f": {text[:40]!r} holds {mark!r} of a chat format, and so do {len(marked)} of {len(out)} prompts; "
            "give each as a list of messages, or take the marks out"
        )
    table = pd.DataFrame(out).astype({"unsafe": "boolean"})
    if table.id.duplicated().any():
        raise ValueError(
            f"prompts={place}: two rows have the id {table.id[table.id.duplicated()].tolist()[0]!r}"
        )
    return table


def _first(row, names):
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _turns(row, bad):
    """The user's turns of a row; what a conversation holds before the last answer stands in the
    first of them."""
    column = next((name for name in TEXT if row.get(name) not in (None, "")), None)
    if column is None:
        raise bad(
            f": no text in a column called {', '.join(TEXT)}; it has {', '.join(map(str, row))}"
        )
    given = row[column] if isinstance(row[column], list) else [row[column]]
    called = f"a column called {column}"
    messages = []
    for turn in given:
        role = turn.get("role", "user") if isinstance(turn, dict) else "user"
        text = turn.get("content") if isinstance(turn, dict) else turn
        if role not in templates.ROLES.values() or not isinstance(text, str) or not text.strip():
            wanted = "a text, a list of texts, or messages with role (system, user, assistant) and content"
            raise bad(f": no text in {called}: found {repr(turn)[:60]}; it holds {wanted}")
        messages.append({"role": role, "content": text})
    if not messages or messages[-1]["role"] != "user":
        who = (
            f"last in {called} is a message of the {messages[-1]['role']}"
            if messages
            else f"no text in {called}"
        )
        raise bad(f": {who}, so nothing is asked; end with a message of the user")
    others = [n for n, m in enumerate(messages) if m["role"] != "user"]
    begin = others[-1] + 1 if others else 0
    asked = [m["content"] for m in messages[begin:]]
    if not begin:
        return asked
    text = templates.dialogue(messages[: begin + 1])
    if [(m["role"], m["content"].strip()) for m in messages[: begin + 1]] != [
        (m["role"], m["content"]) for m in templates.turns(text)
    ]:
        raise bad(
            f": the messages in {called} cannot be told apart when written as one dialogue; begin with system or user, "
            "let user and assistant alternate, and write no 'Human:' or 'Assistant:' in them"
        )
    return [text, *asked[1:]]


def _number_or_text(ident):
    """A csv file has the text "81" where the hub has the number."""
    return int(ident) if isinstance(ident, str) and re.fullmatch(r"[1-9]\d{0,8}", ident) else ident


def _holds_response(row):
    return any(name in row for name in ("response", "response_0", "chosen"))


def _unsafe(row, chosen):
    if chosen.unsafe is not None:
        return chosen.unsafe
    if row.get("label") in ("safe", "unsafe"):
        return row["label"] == "unsafe"
    return (
        str(row["type"]).startswith("contrast_")
        if chosen is SETS["xstest"] and row.get("type")
        else None
    )


# ---------------------------------------------------------------- reading
def _hub_rows(name, chosen, revision):
    if not chosen.hub:
        raise ValueError(
            f"prompts={name!r}: not known on the hub; give its file as {name}=PATH ({chosen.file})"
        )
    from .hub import load_rows

    try:
        yield from load_rows(
            chosen.hub,
            revision or chosen.revision,
            split=chosen.split,
            config=chosen.config,
            name="prompts",
        )
    except ValueError as error:
        raise ValueError(
            f"{error}; or give the set's file as {name}=PATH ({chosen.file})"
        ) from error


def _file_rows(path):
    """Yield the rows of a file as dicts."""
    file, what = Path(path), f"prompts={path}"
    if not file.is_file():
        raise ValueError(f"{what}: no such file")
    if file.suffix not in (".txt", ".csv", ".json", ".jsonl"):
        raise ValueError(f"{what}: unknown ending; use .txt, .csv, .json or .jsonl")
    if file.suffix in (".json", ".jsonl"):
        for _, row in json_rows(file, what):
            for one in row if isinstance(row, list) else [row]:
                yield one if isinstance(one, dict) else {"prompt": one}
        return
    texts = (text for _, text in lines(file, what))
    if file.suffix == ".txt":
        yield from ({"prompt": text.strip()} for text in texts if text.strip())
        return
    reader = csv.DictReader(texts)
    try:
        for row in reader:
            if None in row:
                where = f"{what}, line {reader.line_num}"
                raise ValueError(
                    f"{where}: more cells than the first line has names; quote texts with commas"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{what}, line {reader.line_num}: no csv ({error})") from None
