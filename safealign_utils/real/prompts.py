"""Prompt sets by name, from the hub or a file: a table of prompt, turns, category, unsafe, id.

`SETS` says where each set is published, under which licence, and whether its prompts are meant as
unsafe. No prompt is shipped with the kit. Safety sets hold offensive and dangerous requests: keep
what they draw from a model in files.
"""

import csv
import difflib
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from .. import templates
from ..engine import boundary
from ..engine.boundary import Refusal, shown
from . import hub
from .read_pairs import is_a_dialogue
from .sources import sources

# Names of columns, the first that a row has counts.
ASKED = "prompt turns forbidden_prompt goal Behavior instruction question text".split()
CATEGORY = ("harm_area", "SemanticCategory", "category", "type", "dataset")
ID = ("id", "uid", "question_id", "prompt_id", "BehaviorID")
CONTEXT = ("ContextString", "context")
RESPONSE = ("response", "response_0", "chosen")


@dataclass(frozen=True)
class PromptSet:
    """Where a set is published: an entry of prompt_sets.yaml. Without `hub` a file is needed."""

    file: str
    rows: int | None
    licence: str
    unsafe: bool | None
    hub: str = ""
    split: str = "train"
    config: str = ""
    revision: str = ""
    keep: tuple = ()


@functools.cache
def _published():
    file = Path(__file__).with_name("prompt_sets.yaml")
    sets = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: PromptSet(**said) for name, said in sets.items()}


SETS = _published()


@boundary.reader("prompts", "give a set by name, a file, or set=path")
def load_prompts(name, *, limit=0, tokenizer=None):
    """A prompt set as a table: prompt (text), turns (tuple of texts), category, unsafe, id.

    `name` is one of SETS, the path of a file (.txt: a prompt a line; .csv, .json, .jsonl with a
    column like `prompt`), or `set=path`. A list of messages is a conversation: what the user says
    after the last answer in it is asked, a turn a message; the rest stands before the first of
    these as a dialogue. `limit` > 0 keeps at most so many, the first of every category in turn.
    `unsafe` (boolean or NA): what SETS says for the whole set, else the row's `label` (safe,
    unsafe), else XSTest's rule that a type beginning with contrast_ is unsafe. Pairs give each
    prompt once. A HarmBench context stands before its behaviour as in HarmBench's own baselines.
    MT-Bench has two turns, `prompt` being the first. Texts hold no mark of a chat format, nor a
    special token of `tokenizer`. Raises ValueError naming the file, the row, the column and the
    reason.
    """
    name, path = (name, "") if name in SETS else _named_file(name)
    if not isinstance(limit, int) or limit < 0:
        raise Refusal(f"limit={limit!r}: a whole number of prompts, or 0 for all")
    chosen = SETS.get(name, PromptSet("", None, "", None))
    rows = _file_rows(path) if path else _hub_rows(name, chosen)
    table = _table(rows, path or name, chosen, templates.marker_pattern(tokenizer))
    return some_of_every_category(table, limit) if limit else table


def some_of_every_category(table, n):
    """At most n prompts, in their order: the first of every category in turn."""
    turn = table.groupby("category").cumcount().sort_values(kind="stable").index[:n]
    return table.loc[turn.sort_values()].reset_index(drop=True)


def unseen(table, training, categories=()):
    """The prompts of a table that are not trained on, by their text; of `categories`, where these
    were held out, alone."""
    known = table.prompt.isin(set(training.prompt))
    if len(categories):
        known |= ~table.category.isin(categories)
    return table[~known].reset_index(drop=True)


def _named_file(name):
    """(name of the set, path) of what names no set alone: `set=path`, or a path."""
    if len(named := sources(name, "prompts")) > 1:
        fix = "give one, as set=path or as a path"
        raise Refusal(f"prompts={shown(name)}: names {len(named)} files; {fix}")
    ((own, file),) = named
    if own or Path(file).suffix or os.path.exists(file):
        return own or Path(file).stem, file
    near = difflib.get_close_matches(name[:80], SETS, n=1)
    why = "no set of this name" + (f" (did you mean {near[0]}?)" if near else "")
    raise Refusal(f"prompts={shown(name)}: {why}; choose {', '.join(SETS)}, or give a file")


def _table(rows, place, chosen, marks):
    out, seen, marked = [], set(), []
    for number, row in enumerate(rows, start=1):
        where = f"prompts={place}, row {number}"
        turns, category = _turns(row, where), _category(row)
        is_repeated = any(name in row for name in RESPONSE) and turns in seen
        if is_repeated or chosen.keep and category not in chosen.keep:
            continue
        seen.add(turns)
        marked += [(where, turn, found[0]) for turn in turns if (found := marks.search(turn))][:1]
        found = dict(prompt=turns[0], turns=turns, category=category)
        out.append(found | dict(unsafe=_unsafe(row, chosen), id=_id(row, number, where)))
    if not out:
        of = f" of {' or '.join(chosen.keep)}" if chosen.keep else ""
        raise Refusal(f"prompts={place}: holds no prompts{of}")
    if marked:
        where, text, mark = marked[0]
        fix = "give each as a list of messages, or take the marks out"
        count = f"{len(marked)} of {len(out)} prompts"
        words = f"{text[:40]!r} holds {mark!r} of a chat format, and so do {count}"
        raise Refusal(f"{where}: {words}; {fix}")
    table = pd.DataFrame(out).astype({"unsafe": "boolean"})
    if table.id.duplicated().any():
        twice = table.id[table.id.duplicated()].tolist()[0]
        raise Refusal(f"prompts={place}: two rows have the id {shown(twice)}")
    return table


def _named(row, names):
    """The first of some names under which a row has something, or None."""
    return next((name for name in names if row.get(name) not in (None, "")), None)


def _turns(row, where):
    """The user's turns of a row (a tuple of texts), in the first of them what stands before it."""
    name = _named(row, ASKED)
    if name is None:
        has = boundary.some(row)
        raise Refusal(f"{where}: no text in a column called {', '.join(ASKED)}; it has {has}")
    given = row[name] if isinstance(row[name], list) else [row[name]]
    messages = [_message(turn, name, where) for turn in given]
    if not messages or messages[-1]["role"] != "user":
        found = f"no text in a column called {name}"
        if messages:
            found = f"last in a column called {name} is a message of the {messages[-1]['role']}"
        raise Refusal(f"{where}: {found}, so nothing is asked; end with a message of the user")
    others = [n for n, m in enumerate(messages) if m["role"] != "user"]
    asked = messages[others[-1] + 1 :] if others else messages
    turns = [m["content"] for m in asked]
    if others:
        told = messages[: others[-1] + 2]  # with the first message that is asked
        if not is_a_dialogue(told):
            why = f"the messages in a column called {name} cannot be told apart as one dialogue"
            fix = "begin with system or user, let user and assistant alternate"
            raise Refusal(f"{where}: {why}; {fix}, and write no 'Human:' or 'Assistant:'")
        turns[0] = templates.dialogue(told)
    context = row.get(_named(row, CONTEXT))
    if context is not None:
        if not isinstance(context, str):
            raise Refusal(f"{where}: the context must be text, found {repr(context)[:40]}")
        turns[0] = f"{context}\n\n---\n\n{turns[0]}"
    return tuple(turns)


def _message(turn, name, where):
    role, text = "user", turn
    if isinstance(turn, dict):
        role, text = turn.get("role", "user"), turn.get("content")
    if role not in templates.ROLES.values() or not isinstance(text, str) or not text.strip():
        found = f"no text in a column called {name}: found {repr(turn)[:60]}"
        known = "messages with role (system, user, assistant) and content"
        raise Refusal(f"{where}: {found}; it holds a text, a list of texts, or {known}")
    return {"role": role, "content": text}


def _category(row):
    category = row.get(_named(row, CATEGORY))
    if isinstance(category, dict):  # BeaverTails: a flag a category
        category = [c for c, yes in category.items() if yes]
    if isinstance(category, list):
        category = ", ".join(map(str, category))
    return str(category or "")


def _id(row, number, where):
    """A row's own id, or its number. A csv file has the text "81" where the hub has the number."""
    own = row.get(_named(row, ID), number)
    if isinstance(own, bool) or not isinstance(own, (str, int, float)):
        raise Refusal(f"{where}: an id must be a text or a number, found {shown(own)}")
    return int(own) if isinstance(own, str) and re.fullmatch(r"[1-9]\d{0,8}", own) else own


def _unsafe(row, chosen):
    if chosen.unsafe is not None:
        return chosen.unsafe
    if row.get("label") in ("safe", "unsafe"):
        return row["label"] == "unsafe"
    if chosen is SETS["xstest"] and row.get("type"):
        return str(row["type"]).startswith("contrast_")
    return None


def _hub_rows(name, chosen):
    fix = f"file as {name}=PATH ({chosen.file})"
    if not chosen.hub:
        raise Refusal(f"prompts={name!r}: not known on the hub; give its {fix}")
    which = dict(split=chosen.split, config=chosen.config, name="prompts")
    try:
        for _, row in hub.load_rows(chosen.hub, chosen.revision, **which):
            yield row
    except ValueError as error:
        raise Refusal(f"{error}; or give the set's {fix}") from error


def _file_rows(path):
    file, what = Path(path), f"prompts={path}"
    if not os.path.exists(path):
        raise Refusal(f"{what}: no such file")
    if file.suffix in (".json", ".jsonl"):
        for _, row in hub.json_rows(file, what):
            for one in row if isinstance(row, list) else [row]:
                yield one if isinstance(one, dict) else {"prompt": one}
        return
    texts = (text for _, text in hub.lines(file, what))
    if file.suffix == ".txt":
        yield from ({"prompt": text.strip()} for text in texts if text.strip())
    elif file.suffix == ".csv":
        yield from _csv_rows(texts, what)
    else:
        raise Refusal(f"{what}: unknown ending; use .txt, .csv, .json or .jsonl")


def _csv_rows(texts, what):
    reader = csv.DictReader(texts)
    try:
        for row in reader:
            if None in row:
                where, why = f"{what}, line {reader.line_num}", "more cells than the first line has"
                raise Refusal(f"{where}: {why} names; quote texts with commas")
            yield row
    except csv.Error as error:
        where = f"{what}, line {reader.line_num + 1}"
        raise Refusal(f"{where}: no csv ({error}); save it as csv again") from None
