"""Reading preference pairs from files, folders and the hub, in any of the usual layouts."""

import functools
import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from ..engine import boundary
from ..engine.boundary import Refusal, shown
from ..pairs import LABELS, SAFE, TEXT
from ..templates import ROLES, dialogue, marker_pattern, turns
from . import hub
from .sources import sources

ANSWER = "\n\nAssistant:"
PARTED = "the two dialogues part before the last answer"


FIX = "give a file of pairs, a folder of them, or a hub id"


class LeftOut(Exception):
    """Why a row that nobody can mend is left out."""


@boundary.reader("data", FIX)
def load_pairs(data, *, revision="", tokenizer=None):
    """Pairs of a file (.jsonl, .json, .csv, .parquet), a folder or a hub id, or of several of them.

    `data` is one of these, or `name=path,name=path`; a hub id is owner/name or owner/name@revision.
    A row has the PKU columns; or prompt, chosen, rejected, as texts or as lists of messages (TRL's
    form); or chosen and rejected as whole dialogues (hh-rlhf). Labels may be null or tied, other
    columns are ignored. `category` is the harm category where the data have one, else "", and
    `prompt_label` safe or unsafe where the data label prompts (XSTest), else "". Texts must have
    their response_k_sha256 where that is given, and hold no mark of a chat format, nor the name of
    a special token of `tokenizer`.

    Raises ValueError naming the file, the line (or row), the column and the reason of the first bad
    row. Rows that nobody can mend are left out, printed to stderr and counted in
    `table.attrs["left_out"]` (reason: rows): dialogues that part before the last answer, as no two
    answers to one prompt are compared, and empty texts of a hub data set.
    """
    rows, left_out, marks = [], Counter(), marker_pattern(tokenizer)
    for name, path in sources(data):
        of_source, without = _rows(path, revision, name, marks)
        own = Path(hub.pinned(path)[0]).stem
        rows += [row | {"source": row["source"] or own} for row in of_source]
        left_out.update(without)
    types = dict.fromkeys(SAFE, "boolean") | dict.fromkeys(LABELS.values(), "Int64")
    table = pd.DataFrame(rows).astype(types)
    table.attrs["left_out"] = dict(left_out)
    return table


def _rows(path, revision, name, marks):
    """(rows of one source in one layout, {reason: rows left out}); `name` becomes their source."""
    out, left_out, marked = [], Counter(), []
    for place, row in hub.load_rows(path, revision):
        bad = functools.partial(_refusal, f"data={path}, {place}")
        try:
            texts = _texts(row, bad)
            if not os.path.exists(path):
                _check_not_empty(texts)
        except LeftOut as reason:
            left_out[str(reason)] += 1
            continue
        _check_texts(texts, bad)
        _check_hashes(row, texts, bad)
        found = zip(_named(row), texts, map(marks.search, texts))
        marked += [(bad, column, text, mark[0]) for column, text, mark in found if mark][:1]
        out.append(_labelled(row, texts, name, bad))
    rows = len(out) + left_out.total()
    _check_marked(marked, rows)
    reasons = [f"{count} of {rows} rows left out: {reason}" for reason, count in left_out.items()]
    if not out:
        found = "no pairs: " + "; ".join(reasons) if reasons else "holds no pairs"
        raise Refusal(f"data={path}: {found}")
    for reason in reasons:
        print(f"data={path}: {reason}", file=sys.stderr)
    return out, left_out


def _refusal(where, column, reason):
    return Refusal(f"{where}, column {shown(column)}: {reason}")


def _labelled(row, texts, source, bad):
    """A row in the one layout; `source` "" leaves the name of its source to the row."""
    out = dict(zip(TEXT, texts))
    for column in SAFE:
        out[column] = _one_of((False, True), row.get(column), "true, false or null", bad, column)
    # of chosen and rejected the chosen one comes first
    better = row.get("better_response_id") if "response_0" in row else 0
    for column, value in zip(LABELS.values(), (better, row.get("safer_response_id"))):
        out[column] = _one_of((0, 1), value, "0, 1 or null", bad, column)
    out["source"] = source or _word(row, "source", bad, "name it as data=NAME=PATH")
    out["split"] = _word(row, "split", bad, "write train or test, or rename the column").strip()
    label = row.get("prompt_label")
    label = label if label in ("safe", "unsafe") else ""
    return out | {"category": _category(row), "prompt_label": label}


def _check_marked(marked, rows):
    """Refuse texts with the mark of a chat format, saying how many rows have one."""
    if marked:
        bad, column, text, mark = marked[0]
        shown = text if len(text) <= 60 else f"{text[:30]} ... {text[-30:]}"
        why = f"{shown!r} holds {mark!r} of a chat format, and so do {len(marked)} of {rows} rows"
        fix = "give the messages as lists in prompt, chosen and rejected, or take the marks out"
        raise bad(column, f"{why}; {fix}")


def _named(row):
    """The names of prompt and the two responses in a row's own layout."""
    return TEXT if "response_0" in row or "chosen" not in row else ("prompt", "chosen", "rejected")


def _check_not_empty(texts):
    """Leave out a row of texts of which one is missing or blank."""
    if all(value is None or isinstance(value, str) for value in texts):
        if any(value is None or not value.strip() for value in texts):
            raise LeftOut("an empty text")


def _check_texts(texts, bad):
    """Refuse what is no text, naming the column of either layout."""
    also = {"response_0": " (or chosen)", "response_1": " (or rejected)"}
    for column, value in zip(TEXT, texts):
        if not isinstance(value, str) or not value.strip():
            found = "nothing" if value is None or value == "" else repr(value)[:40]
            raise bad(column, f"{column}{also.get(column, '')} must be text, found {found}")


def _check_hashes(row, texts, bad):
    for k in (0, 1):
        column, text = f"response_{k}_sha256", texts[0] + texts[1 + k]
        given = row.get(column)
        if isinstance(given, str) and given.lower() != hashlib.sha256(text.encode()).hexdigest():
            why = f"is not the SHA-256 of prompt + response_{k}: a text was altered"
            raise bad(column, f"{why}; fetch the file again")


def _word(row, column, bad, fix):
    """A column of one word a row, as text; a whole number of a source counts as its name."""
    value = row.get(column)
    if _is_missing(value):
        return ""
    if column == "source" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise bad(column, f"must be text, found {repr(value)[:40]}; {fix}")
    return value


def _one_of(allowed, value, words, bad, column):
    """None, or a value in the type of those allowed; True is not 1 here."""
    if _is_missing(value):
        return None
    kind = type(allowed[0])
    if isinstance(value, str) or isinstance(value, bool) != (kind is bool) or value not in allowed:
        raise bad(column, f"must be {words}, found {shown(value)}")
    return kind(value)


def _is_missing(value):
    return value is None or isinstance(value, float) and np.isnan(value)


def _category(row):
    """Harm category: the column, the names true for either response (PKU), or XSTest's type."""
    own = row.get("category")
    if isinstance(own, list) and all(isinstance(name, str) for name in own):
        return "; ".join(own)
    if isinstance(own, (str, int)) and not isinstance(own, bool):
        return str(own)
    harms = [row.get(f"response_{k}_harm_category") for k in (0, 1)]
    harms = [harm for harm in harms if isinstance(harm, dict)]
    names = [name for harm in harms for name, found in harm.items() if found]
    type_ = row.get("type")
    return "; ".join(dict.fromkeys(names)) or (type_ if isinstance(type_, str) else "")


def _texts(row, bad):
    """[prompt, response_0, response_1] of a row of any layout, unchecked. Raises LeftOut."""
    if not isinstance(row, dict):
        raise bad("prompt", "the row is not an object with named columns")
    if "response_0" not in row and "chosen" not in row and "response" in row:
        why = "the rows have one response each and are no pairs"
        fix = "train on pairs such as those of PKU-Alignment/PKU-SafeRLHF-30K"
        raise bad("response_0", f"{why}; {fix}, and take the prompts for evaluation")
    if "response_0" in row or "chosen" not in row:
        return _present(row, TEXT, bad)
    prompt, (chosen, rejected) = row.get("prompt"), _present(row, ("chosen", "rejected"), bad)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _from_messages(prompt, chosen, rejected, bad)
    if prompt is None and all(isinstance(y, str) and ANSWER in y for y in (chosen, rejected)):
        return _from_dialogues(chosen, rejected)
    return [*_present(row, ("prompt",), bad), chosen, rejected]


def _present(row, columns, bad):
    """The values of columns that must be there; a refusal says which ones are."""
    if missing := [column for column in columns if column not in row]:
        known = f"pairs have the columns {', '.join(TEXT)}, or prompt, chosen, rejected"
        has = f"these have {boundary.some(row) or 'none'}"
        raise bad(missing[0], f"found nothing: {known}; {has}")
    return [row[column] for column in columns]


def _from_dialogues(chosen, rejected):
    """Of two whole dialogues: what both share up to the last answer, and the two answers."""
    at = os.path.commonprefix([chosen, rejected]).rfind(ANSWER)
    answers = [y[at:].strip().removeprefix(ANSWER.strip()).strip() for y in (chosen, rejected)]
    if at < 0 or any("\n\nHuman:" in y for y in answers):
        raise LeftOut(PARTED)
    prompt = chosen[: at + len(ANSWER)].strip()
    messages = turns(prompt)
    return _answered(messages[0]["content"] if len(messages) == 1 else prompt, answers)


def _from_messages(prompt, chosen, rejected, bad):
    """Of two lists of messages, after a prompt that is a list, a text or missing: the same."""
    asked = prompt if isinstance(prompt, list) else []
    for column, messages in (("prompt", asked), ("chosen", chosen), ("rejected", rejected)):
        _check_messages(messages, column, bad)
    both = list(zip(chosen[:-1], rejected[:-1]))
    shared = next((n for n, (a, b) in enumerate(both) if a != b), len(both))
    ends = [messages[shared:] for messages in (chosen, rejected)]
    # chosen and rejected may repeat the prompt
    asked = (asked if chosen[: len(asked)] != asked else []) + chosen[:shared]
    if isinstance(prompt, str) and not asked:
        asked = [{"role": "user", "content": prompt}]
    if not asked or any(len(end) != 1 or end[0]["role"] != "assistant" for end in ends):
        raise LeftOut(PARTED)
    if asked[-1]["role"] == "assistant":
        raise LeftOut("the prompt ends in words of the assistant, which both answers continue")
    if len(asked) > 1 and not is_a_dialogue(asked):
        raise LeftOut("its messages cannot be told apart when written as one dialogue")
    return _answered(dialogue(asked), [end[0]["content"] for end in ends])


def _check_messages(messages, column, bad):
    for m in messages:
        is_message = isinstance(m, dict) and isinstance(m.get("content"), str)
        if not is_message or m.get("role") not in ROLES.values():
            words = "a message has a role (system, user, assistant) and a text as content"
            raise bad(column, f"{words}, found {shown(m)}")


def _answered(prompt, answers):
    if not all(y.strip() for y in answers):
        raise LeftOut("an empty answer")
    return [prompt, *answers]


def is_a_dialogue(messages):
    """Whether messages, written as one dialogue, are read as the same ones."""
    read = [(m["role"], m["content"]) for m in turns(dialogue(messages))]
    return read == [(m["role"], m["content"].strip()) for m in messages]
