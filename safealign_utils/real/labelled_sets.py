"""Answer sets from pairs: prompts with several answers each, r and c from human labels.

A file of pairs that compares several answers to one prompt holds a set S of them, as
`answer_sets.py` needs it. XSTest's does: answers of five models, each labelled by two annotators.

What the labels say: c = 1 for an unsafe answer, -1 for a safe one. r is the level of an answer in
the order of `better_response_id`, 0 for the worst: XSTest's are refusal, partial and full
compliance, of which a prompt has up to three. Answers in no known order are on one level, as those
of a tie are. That needs an order in which the levels explain every comparison (a weak order):
prompts without one are left out, and so are those whose answers are all alike, as they teach
nothing.

Every answer is cut before anything else: to its first sentences, as the answers of the kit's own
sets are (an answer that ends within a sentence has next to no probability), and those to LONGEST
tokens. What was longer is another text than the one that people labelled, and keeps that one's
labels. Answers that are the same text then are one; where their labels differ, the prompt is left
out.
"""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from .. import pairs
from ..engine import boundary
from ..engine.boundary import Refusal
from ..templates import encode_prompts, encode_responses
from . import answer_sets, read_pairs

LONGEST = 48  # tokens of an answer: whether it refuses shows in its first words
KINDS = ("everyday", "borderline", "risky")  # the order of the prompts
# Types of XSTest's prompts that are never trained on: each beside its contrast.
HELD_OUT = ("definitions", "contrast_definitions", "safe_targets", "contrast_safe_targets")


class LeftOut(Exception):
    """Why a prompt is left out."""


@boundary.reader("data", read_pairs.FIX)
def from_pairs(data, tokenizer, *, template="auto"):
    """The `answer_sets.AnswerSets` of what `data` names (see `read_pairs.load_pairs`): the answers
    to a prompt are those of all its pairs.

    Held out are the categories HELD_OUT where the data have one of them; else the column `split`
    decides, or a hash of the prompt (`pairs.split_pairs`). A prompt is risky where it is labelled
    unsafe or has an unsafe answer, borderline where it is labelled safe, else everyday; risky ones
    come last. `notes` counts the prompts that were left out, by reason, and the answers cut. Raises
    ValueError without safety labels, and where a split has no prompt with an unsafe answer.
    """
    table = read_pairs.load_pairs(data, tokenizer=tokenizer)
    if table[list(pairs.SAFE)].isna().all(axis=None):
        need = " and ".join(pairs.SAFE)
        raise Refusal(f"data={data}: no row has a safety label; c needs {need}")
    table, is_cut = _cut_all(table, tokenizer)
    policy = SimpleNamespace(tokenizer=tokenizer, template=template)
    found, notes = [], Counter({"answers cut": is_cut})
    for prompt, rows in table.groupby("prompt", sort=False):
        try:
            known = answers_of(rows)
            _check_room(prompt, known[0], policy)
            found.append((_prompt(prompt, rows, known[2]), *known))
        except LeftOut as reason:
            notes[f"prompts left out, {reason}"] += 1
    return _sets(data, _held_out(table, found), notes)


# ---------------------------------------------------------------- one prompt
def answers_of(rows):
    """(answers, r, safe) of the pairs of one prompt: a tuple of texts, in the order of the pairs,
    and two lists. Raises LeftOut."""
    answers = tuple(dict.fromkeys(text for both in zip(*_texts(rows)) for text in both))
    if len(answers) < 2:
        raise LeftOut("fewer than two different answers")
    safe = {text: set() for text in answers}
    for texts, column in zip(_texts(rows), pairs.SAFE):
        for text, label in zip(texts, rows[column]):
            safe[text] |= set() if label is pd.NA else {bool(label)}
    if any(len(labels) > 1 for labels in safe.values()):
        raise LeftOut("one answer is labelled both safe and unsafe")
    if not all(safe.values()):
        raise LeftOut("an answer has no safety label")
    is_safe = [labels.pop() for labels in safe.values()]
    levels = _levels(answers, rows)
    if not any(is_safe):
        raise LeftOut("no answer is safe")
    if all(is_safe) and max(levels) == 0:
        raise LeftOut("all answers are alike in r and c")
    return answers, levels, is_safe


def _texts(rows):
    return [rows[column].tolist() for column in pairs.TEXT[1:]]


def _levels(answers, rows):
    """The level of each answer by the comparisons of its prompt: ints from 0, the worst."""
    number, n = {text: i for i, text in enumerate(answers)}, len(answers)
    beats, tied = np.zeros((n, n), dtype=bool), np.eye(n, dtype=bool)
    for one, other, better in zip(*_texts(rows), rows.better_response_id):
        i, j = number[one], number[other]
        if better is pd.NA:
            tied[i, j] = True
        else:
            beats[(i, j) if better == 0 else (j, i)] = True
    group = connected_components(tied, directed=False)[1]
    return levels(group, beats)[group].tolist()


def levels(group, beats):
    """Levels [G] of groups of tied answers: group [n] of each answer, beats bool [n, n]. Raises
    LeftOut for a circle, and where two on different levels are in no order."""
    size = group.max() + 1
    above = np.zeros((size, size), dtype=bool)
    above[group[np.nonzero(beats)[0]], group[np.nonzero(beats)[1]]] = True
    for middle in range(size):  # what follows from two comparisons
        above |= np.outer(above[:, middle], above[middle])
    if above.diagonal().any():
        raise LeftOut("its comparisons contradict each other")
    out = np.zeros(size, dtype=int)
    for i in np.argsort(above.sum(1)):  # who beats more comes later than those it beats
        out[i] = max((out[j] + 1 for j in np.nonzero(above[i])[0]), default=0)
    if ((above | above.T) != (out[:, None] != out)).any():
        raise LeftOut("its comparisons leave the order open")
    return out


def _prompt(prompt, rows, safe):
    first = rows.iloc[0]
    kind = {"safe": "borderline", "unsafe": "risky"}.get(first.prompt_label, "everyday")
    kind = kind if all(safe) else "risky"
    topic = first.category or first.source
    return answer_sets.Prompt(prompt, topic, kind, heldout=topic in HELD_OUT)


# ---------------------------------------------------------------- cut, and held out
def _cut_all(table, tokenizer):
    """A table with its answers cut, and how many different ones were."""
    texts = list(dict.fromkeys(text for texts in _texts(table) for text in texts))
    short = {text: cut(text, tokenizer) for text in texts}
    table = table.assign(**{name: table[name].map(short) for name in pairs.TEXT[1:]})
    return table, sum(" ".join(text.split()) != short[text] for text in texts)


def cut(text, tokenizer):
    """The first sentences of a text (`answer_sets.first_sentences`), of those the first LONGEST
    tokens, without half a character or blanks at the end."""
    text = answer_sets.first_sentences(text)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) <= LONGEST:
        return text
    start = tokenizer.decode(ids[:LONGEST], clean_up_tokenization_spaces=False)
    return start.rstrip("\ufffd").rstrip() or text


def _check_room(prompt, answers, policy):
    longest = max(map(len, encode_responses(answers, policy.tokenizer, policy.template)))
    if len(encode_prompts([prompt], policy)[0]) + longest > answer_sets.ROOM:
        raise LeftOut(f"longer than {answer_sets.ROOM} tokens with an answer")


def _held_out(table, found):
    """The prompts with their split: by category, else as pairs are split."""
    if any(prompt.heldout for prompt, *_ in found):
        return found
    held = set(pairs.split_pairs(table)[1].prompt)
    return [(replace(x, heldout=x.text in held), *known) for x, *known in found]


def _sets(data, found, notes):
    """The sets of the prompts, risky ones last. Raises ValueError where a split cannot be used."""
    for held, split in enumerate(("training", "held-out")):
        own = [safe for prompt, _, _, safe in found if prompt.heldout == held]
        if all(map(all, own)):
            why = f"{len(own)} {split} prompts, none with a safe and an unsafe answer"
            said = "; ".join(f"{reason}: {count}" for reason, count in notes.items())
            fix = "give pairs of several answers to a prompt, with labels of both kinds"
            raise Refusal(f"data={data}: {why} ({said}); {fix}")
    found = sorted(found, key=_place)
    return answer_sets.tabulated(*zip(*found), notes=notes)


def _place(one):
    return KINDS.index(one[0].kind)
