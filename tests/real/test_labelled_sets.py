"""Answer sets from pairs: levels from comparisons, what is left out, cuts, splits, and XSTest's file."""

import json

import numpy as np
import pytest
from helpers import made_models

from safealign_utils.real import answer_sets, labelled_sets, read_pairs


@pytest.fixture(scope="module")
def tokenizer():
    return made_models.tokenizer()


def pair(a, b, better=None, safe=(True, True), prompt="Why?", **more):
    """A row: answers `a` and `b`, the one that is better, and which are safe."""
    labels = {f"is_response_{k}_safe": label for k, label in enumerate(safe)}
    said = {"prompt": prompt, "response_0": a, "response_1": b, "better_response_id": better}
    return said | labels | more


def write(folder, rows):
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def read(folder, rows):
    return read_pairs.load_pairs(write(folder, rows))


def solvable(prompt, **more):
    """Rows of a prompt with a refusal, half an answer and an unsafe whole one."""
    unsafe, more = (True, False), dict(prompt=prompt, **more)
    yield pair("I cannot help", "Do half of it", 1, **more)
    yield pair("Do half of it", "Do all of it", 1, unsafe, **more)
    yield pair("I cannot help", "Do all of it", 1, unsafe, **more)


# ---------------------------------------------------------------- the answers of one prompt
@pytest.mark.parametrize(
    "compared, levels",
    [
        (["a>b", "b>c"], dict(a=2, b=1, c=0)),
        (["b>c", "a>b", "a>c"], dict(a=2, b=1, c=0)),
        (["a=b", "b>c"], dict(a=1, b=1, c=0)),
        (["a=b", "c=a", "b>d"], dict(a=1, b=1, c=1, d=0)),
        (["a>c", "b>c"], dict(a=1, b=1, c=0)),
        (["c<a", "a>c"], dict(a=1, c=0)),
        (["a>b", "a>b", "a=a"], dict(a=1, b=0)),
    ],
)
def test_levels_from_comparisons(compared, levels, tmp_path):
    """ "a=b" is a tie; answers in no order are on one level too; a row may stand twice."""
    better = {">": 0, "<": 1, "=": None}
    rows = read(tmp_path, [pair(a, b, better[how]) for a, how, b in compared])
    answers, found, safe = labelled_sets.answers_of(rows)
    assert dict(zip(answers, found)) == levels and all(safe)


@pytest.mark.parametrize(
    "rows, why",
    [
        ([pair("a", "b", 0), pair("b", "c", 0), pair("c", "a", 0)], "contradict each other"),
        ([pair("a", "b", 0), pair("a", "b", 1)], "contradict each other"),
        ([pair("a", "b", 0), pair("b", "a")], "contradict each other"),
        ([pair("a", "b", 0), pair("a", "a", 1)], "contradict each other"),
        ([pair("a", "b", 0), pair("c", "d", 0)], "leave the order open"),
        ([pair("a", "b"), pair("b", "c")], "alike in r and c"),
        ([pair("a", "a")], "fewer than two different answers"),
        ([pair("a", "b", 0), pair("a", "b", 0, (False, True))], "both safe and unsafe"),
        ([pair("a", "b", 0, (True, None))], "has no safety label"),
        ([pair("a", "b", 0, (False, False))], "no answer is safe"),
    ],
)
def test_a_prompt_without_known_levels_is_left_out(rows, why, tmp_path):
    with pytest.raises(labelled_sets.LeftOut, match=why):
        labelled_sets.answers_of(read(tmp_path, rows))


def test_a_label_of_another_row_counts(tmp_path):
    rows = [pair("a", "b", 0, (True, None)), pair("b", "c", None, (False, True))]
    answers, levels, safe = labelled_sets.answers_of(read(tmp_path, rows))
    assert (answers, levels, safe) == (("a", "b", "c"), [1, 0, 0], [True, False, True])


def test_one_level_is_enough_where_safety_differs(tmp_path):
    rows = read(tmp_path, [pair("a", "b", None, (True, False))])
    assert labelled_sets.answers_of(rows) == (("a", "b"), [0, 0], [True, False])


# ---------------------------------------------------------------- a file
def test_the_sets_of_a_file(tmp_path, tokenizer):
    rows = [
        *solvable("Risky?", type="homonyms", prompt_label="unsafe"),
        *solvable("Held out?", type="contrast_definitions", prompt_label="unsafe"),
        pair("No", "Yes", 1, prompt="Fine?", type="homonyms", prompt_label="safe"),
        pair("No", "Yes", prompt="Tied?", type="homonyms", prompt_label="safe"),
        pair("No", "Yes", 1, prompt="Any?"),
    ]
    sets = labelled_sets.from_pairs(f"made={write(tmp_path, rows)}", tokenizer)
    shown = [(x.text, x.topic, x.kind, x.heldout) for x in sets.prompts]
    assert shown == [
        ("Any?", "made", "everyday", False),
        ("Fine?", "homonyms", "borderline", False),
        ("Risky?", "homonyms", "risky", False),
        ("Held out?", "contrast_definitions", "risky", True),
    ]
    assert sets.answers[2] == ("I cannot help", "Do half of it", "Do all of it")
    assert sets.reward[2].tolist() == [0, 1, 2] and sets.cost[2].tolist() == [-1, -1, 1]
    assert sets.refuses[2].tolist() == [True, False, False]
    assert sets.there.sum(1).tolist() == [2, 2, 3, 3]
    assert sets.notes["prompts left out, all answers are alike in r and c"] == 1
    assert sets.select("train").tolist() == [0, 1, 2] and sets.select("heldout").tolist() == [3]


def test_the_pairs_are_complete_and_as_labelled(tmp_path, tokenizer):
    """A pair that the file does not compare has the label of its levels."""
    rows = [*solvable("Risky?"), *list(solvable("Held out?", type="definitions"))[:2]]
    sets = labelled_sets.from_pairs(f"made={write(tmp_path, rows)}", tokenizer)
    table = sets.pairs(sets.select("heldout"))
    assert len(table) == 3 and table.better_response_id.tolist() == [1, 1, 1]
    assert table.safer_response_id.isna().tolist() == [True, False, False]
    assert table.is_response_1_safe.tolist() == [True, False, False]


def test_held_out_by_split_or_by_hash(tmp_path, tokenizer):
    named = {"One?": "train", "Two?": "valid", "Three?": "train"}
    rows = [row for x, split in named.items() for row in solvable(x, split=split)]
    sets = labelled_sets.from_pairs(write(tmp_path, rows), tokenizer)
    assert {x.text: x.heldout for x in sets.prompts} == {
        x: split == "valid" for x, split in named.items()
    }
    rows = [row for n in range(40) for row in solvable(f"Number {n}?")]
    once, again = (labelled_sets.from_pairs(write(tmp_path, rows), tokenizer) for _ in range(2))
    assert 0 < len(once.select("heldout")) < 20 and once.prompts == again.prompts


def test_answers_are_cut_before_they_are_compared(tmp_path, tokenizer, monkeypatch):
    """To their first sentences and LONGEST tokens; what is one text then, with other labels, is left
    out."""
    start = "Here are ten words that end a sentence of it."
    assert labelled_sets.cut(f"{start}  And more.", tokenizer) == start
    assert labelled_sets.cut("Short\nand whole", tokenizer) == "Short and whole"
    monkeypatch.setattr(labelled_sets, "LONGEST", 4)
    assert labelled_sets.cut("é" * 30, tokenizer) in ("é" * n for n in range(1, 5))
    assert len(tokenizer(labelled_sets.cut("q z " * 30, tokenizer)).input_ids) <= 4
    monkeypatch.setattr(labelled_sets, "LONGEST", 48)
    rows = [row for x, s in (("A?", "train"), ("B?", "test")) for row in solvable(x, split=s)]
    same = pair(f"{start} Yes.", f"{start} No.", 1, prompt="Same?", split="train")
    both = pair(f"{start} Yes.", f"{start} No.", prompt="Both?", split="train", safe=(True, False))
    more = [row | {"response_1": "No", "better_response_id": 0} for row in (same, both)]
    sets = labelled_sets.from_pairs(write(tmp_path, [*rows, same, both, *more]), tokenizer)
    assert [x.text for x in sets.prompts] == ["A?", "B?"]
    assert sets.notes == {
        "answers cut": 2,
        "prompts left out, its comparisons contradict each other": 1,
        "prompts left out, one answer is labelled both safe and unsafe": 1,
    }


def test_a_prompt_without_room_is_left_out(tmp_path, tokenizer):
    asked = {"A?": "train", "B?": "test", "Why " * 300: "train"}
    rows = [row for x, split in asked.items() for row in solvable(x, split=split)]
    sets = labelled_sets.from_pairs(write(tmp_path, rows), tokenizer)
    assert len(sets.prompts) == 2
    assert sets.notes["prompts left out, longer than 256 tokens with an answer"] == 1


@pytest.mark.parametrize(
    "rows, why",
    [
        (
            [pair("a", "b", 0, (None, None))],
            "no row has a safety label; c needs is_response_0_safe",
        ),
        (
            [*solvable("A?", split="train"), pair("a", "b", 0, prompt="B?", split="test")],
            "1 held-out prompts, none with a safe and an unsafe answer",
        ),
        (
            [*solvable("A?", split="test"), pair("a", "b", prompt="B?", split="train")],
            "0 training prompts, none .*alike in r and c: 1.*give pairs of several answers",
        ),
        (
            list(solvable("A?", split="train")),
            "3 training and 0 held-out",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(rows, why, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=f"^data.*{why}"):
        labelled_sets.from_pairs(write(tmp_path, rows), tokenizer)


def test_xstest_has_three_levels(real_data, tokenizer):
    """Its comparisons give every prompt levels; unsafe answers comply most; whole types are held out."""
    file = real_data / "xstest_pairs.jsonl"
    table = read_pairs.load_pairs(f"xstest={file}")
    reasons, most = [], []
    for _, rows in table.groupby("prompt"):
        try:
            _, levels, safe = labelled_sets.answers_of(rows)
        except labelled_sets.LeftOut as reason:
            reasons.append(str(reason))
            continue
        most.append(max(levels))
        assert all(level == max(levels) for level, ok in zip(levels, safe) if not ok)
    assert set(reasons) == {"all answers are alike in r and c"}
    assert (len(reasons), len(most), set(most)) == (176, 162, {1, 2})
    sets = labelled_sets.from_pairs(f"xstest={file}", tokenizer)
    for split in ("train", "heldout"):
        ids = sets.select(split)
        assert {sets.prompts[x].kind for x in ids} == {"borderline", "risky"}
        assert (sets.cost[ids] > 0).any()
    held = {sets.prompts[x].topic for x in sets.select("heldout")}
    assert held == set(labelled_sets.HELD_OUT)
    assert not held & {sets.prompts[x].topic for x in sets.select("train")}
    assert isinstance(sets, answer_sets.AnswerSets) and np.isfinite(sets.reward).all()
