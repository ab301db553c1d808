"""Reading preference pairs from files, folders and the hub, in any of the usual layouts."""

import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from ..pairs import LABELS, SAFE, TEXT
from ..templates import ROLES, dialogue, marker_pattern, turns
from . import hub
from .sources import sources

ANSWER = "\n\nAssistant:"
PARTED = "the two dialogues part before the last answer"
FIX = "give the messages as lists in prompt, chosen and rejected, or take the marks out"


# ---------------------------------------------------------------- reading
def load_pairs(data, *, revision="", tokenizer=None):
    """Read pairs from a file (.jsonl, .json, .csv, .parquet), a folder, a hub id as owner/name or owner/name@revision,
    or several as `name=path,name=path`.

    A row has the PKU columns; or prompt, chosen, rejected, as texts or as lists of messages (TRL's form); or chosen
    and rejected as whole dialogues (hh-rlhf). Labels may be null or tied, other columns are ignored. `category` is
    the harm category where the data have one, else "". Texts must have their response_k_sha256 where that is given.
    A text must hold no mark of a chat format, nor the name of a special token of `tokenizer` where
    one is given.

    Raises ValueError naming the file, the line (or row), the column and the reason of the first bad row. Rows that
    nobody can mend are left out, told on stderr and counted in `table.attrs["left_out"]` (reason: rows): dialogues
    that part before the last answer, as no two answers to one prompt are compared, and empty texts of a hub data set.
    """
    left_out, marks = Counter(), marker_pattern(tokenizer)
    tables = [_checked(path, revision, name, left_out, marks) for name, path in sources(data)]
    table = pd.concat(tables, ignore_index=True)
    table.attrs["left_out"] = dict(left_out)
    return table


def _checked(path, revision, name, left_out, marks):
    """The table of one source: rows validated, all layouts brought into one."""
    out, without, marked = [], Counter(), []
    own = Path(hub.pinned(path)[0]).stem
    for place, row in hub.placed_rows(path, revision):
        bad = lambda column, reason, place=place: ValueError(
            f"data={path}, {place}, column {column!r}: {reason}"
        )
        texts = _texts(row, bad)
        if not isinstance(texts, str) and not Path(path).exists() and _empty(texts):
            texts = "an empty text"
        if isinstance(texts, str):
            without[texts] += 1
            continue
        _check_texts(texts, bad)
        _check_hashes(row, texts, bad)
        found = next(
            ((c, y, m[0]) for c, y in zip(_named(row), texts) if (m := marks.search(y))), None
        )
        if found:
            marked.append((place, *found))
        clean = dict(zip(TEXT, texts))
        for column in SAFE:
            clean[column] = _in(row.get(column), (False, True), "true, false or null", bad, column)
        better = (
            0 if "response_0" not in row else row.get("better_response_id")
        )  # the chosen one comes first
        for column, value in zip(LABELS.values(), (better, row.get("safer_response_id"))):
            clean[column] = _in(value, (0, 1), "0, 1 or null", bad, column)
        clean["source"] = name or _word(row, "source", bad, "name it as data=NAME=PATH") or own
        clean["split"] = _word(row, "split", bad, "write train or test, or rename the column")
        clean["category"] = _category(row)
        out.append(clean)
    rows = len(out) + without.total()
    if marked:
        place, column, text, mark = marked[0]
        shown = text if len(text) <= 60 else f"{text[:30]} ... {text[-30:]}"
        raise ValueError(
            f"data={path}, {place}, column {column!r}: {shown!r} holds {mark!r} of a chat format, and so "
            f"do {len(marked)} of {rows} rows; {FIX}"
        )
    reasons = [f"{count} of {rows} rows left out: {reason}" for reason, count in without.items()]
    if not out:
        raise ValueError(
            f"data={path}: " + ("no pairs: " + "; ".join(reasons) if reasons else "holds no pairs")
        )
    for reason in reasons:
        print(f"data={path}: {reason}", file=sys.stderr)
    left_out.update(without)
    types = dict.fromkeys(SAFE, "boolean") | dict.fromkeys(LABELS.values(), "Int64")
    return pd.DataFrame(out).astype(types)


def _named(row):
    """The names of prompt and the two responses in a row's own layout."""
    return TEXT if "response_0" in row or "chosen" not in row else ("prompt", "chosen", "rejected")


def _empty(texts):
    """Whether one of three texts is missing or blank, and none is anything else than text."""
    only = all(value is None or isinstance(value, str) for value in texts)
    return only and any(value is None or not value.strip() for value in texts)


def _check_texts(texts, bad):
    """Refuse what is no text, naming the column of either layout."""
    also = {"response_0": " (or chosen)", "response_1": " (or rejected)"}
    for column, value in zip(TEXT, texts):
        if not isinstance(value, str) or not value.strip():
            found = "nothing" if value is None or value == "" else repr(value)[:40]
            raise bad(column, f"{column}{also.get(column, '')} must be text, found {found}")


def _word(row, column, bad, fix):
    """A column of one word a row, as text; a whole number of a source counts as its name."""
    value = row.get(column)
    if value is None or isinstance(value, float) and np.isnan(value):
        return ""
    if column == "source" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise bad(column, f"must be text, found {repr(value)[:40]}; {fix}")
    return value.strip() if column == "split" else value


def _texts(row, bad):
    """(prompt, response_0, response_1) of a row of any layout, unchecked; or why the row must be left out, a text."""
    if not isinstance(row, dict):
        raise bad("prompt", "the row is not an object with named columns")
    if "response_0" in row or "chosen" not in row:
        if "response" in row and "response_0" not in row:
            raise bad(
                "response_0",
                "the rows have one response each and are no pairs; train on pairs such as those of "
                "PKU-Alignment/PKU-SafeRLHF-30K, and take the prompts for evaluation",
            )
        return _present(row, TEXT, bad)
    prompt, chosen, rejected = row.get("prompt"), *_present(row, ("chosen", "rejected"), bad)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _from_messages(prompt, chosen, rejected, bad)
    if prompt is None and all(isinstance(y, str) and ANSWER in y for y in (chosen, rejected)):
        return _from_dialogues(chosen, rejected)
    return [*_present(row, ("prompt",), bad), chosen, rejected]


def _present(row, columns, bad):
    """The values of columns that must be there; a refusal says which ones are."""
    if missing := [column for column in columns if column not in row]:
        raise bad(
            missing[0],
            f"found nothing: pairs have the columns {', '.join(TEXT)}, or prompt, chosen, rejected; "
            f"these have {', '.join(map(str, row)) or 'none'}",
        )
    return [row[column] for column in columns]


def _from_dialogues(chosen, rejected):
    """Of two whole dialogues: what both share up to the last answer, and the two answers."""
    at = os.path.commonprefix([chosen, rejected]).rfind(ANSWER)
    prompt, *answers = (
        text.strip() for text in (chosen[: at + len(ANSWER)], chosen[at:], rejected[at:])
    )
    answers = [y.removeprefix(ANSWER.strip()).strip() for y in answers]
    if at < 0 or any("\n\nHuman:" in y for y in answers):
        return PARTED
    messages = turns(prompt)
    return (
        [messages[0]["content"] if len(messages) == 1 else prompt, *answers]
        if all(answers)
        else "an empty answer"
    )


def _from_messages(prompt, chosen, rejected, bad):
    """Of two lists of messages, after a prompt that is a list, a text or missing: the same."""
    asked = prompt if isinstance(prompt, list) else []
    for column, messages in (("prompt", asked), ("chosen", chosen), ("rejected", rejected)):
        for m in messages:
            if (
                not isinstance(m, dict)
                or m.get("role") not in ROLES.values()
                or not isinstance(m.get("content"), str)
            ):
                raise bad(
                    column,
                    f"a message has a role (system, user, assistant) and a text as content, found {m!r}",
                )
    shared = next((n for n, (a, b) in enumerate(zip(chosen[:-1], rejected[:-1])) if a != b), None)
    shared = min(len(chosen), len(rejected)) - 1 if shared is None else shared
    asked = (asked if chosen[: len(asked)] != asked else []) + chosen[: max(shared, 0)]
    ends = [messages[max(shared, 0) :] for messages in (chosen, rejected)]
    if isinstance(prompt, str) and not asked:
        asked = [{"role": "user", "content": prompt}]
    if not asked or any(len(end) != 1 or end[0]["role"] != "assistant" for end in ends):
        return PARTED
    if asked[-1]["role"] == "assistant":
        return "the prompt ends in words of the assistant, which both answers continue"
    text = dialogue(asked)
    if len(asked) > 1 and [m["content"].strip() for m in asked] != [
        m["content"] for m in turns(text)
    ]:
        return "its messages cannot be told apart when written as one dialogue"
    answers = [end[0]["content"] for end in ends]
    return [text, *answers] if all(y.strip() for y in answers) else "an empty answer"


def _category(row):
    """Harm category: a column of that name, the names that are true for either response (PKU), or XSTest's type."""
    own = row.get("category")
    if isinstance(own, list) and all(isinstance(name, str) for name in own):
        return "; ".join(own)
    if isinstance(own, (str, int)) and not isinstance(own, bool):
        return str(own)
    harms = [row.get(f"response_{k}_harm_category") for k in (0, 1)]
    names = [
        name for harm in harms if isinstance(harm, dict) for name, found in harm.items() if found
    ]
    return "; ".join(dict.fromkeys(names)) or (
        row["type"] if isinstance(row.get("type"), str) else ""
    )


def _check_hashes(row, texts, bad):
    for k in (0, 1):
        column, text = f"response_{k}_sha256", texts[0] + texts[1 + k]
        given = row.get(column)
        if isinstance(given, str) and given.lower() != hashlib.sha256(text.encode()).hexdigest():
            raise bad(
                column,
                f"is not the SHA-256 of prompt + response_{k}: a text was altered; fetch the file again",
            )


def _in(value, allowed, words, bad, column):
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    is_bool = isinstance(value, bool)
    if value not in allowed or (is_bool != isinstance(allowed[0], bool)) or isinstance(value, str):
        raise bad(column, f"must be {words}, found {value!r}")
    return bool(value) if is_bool else int(value)
