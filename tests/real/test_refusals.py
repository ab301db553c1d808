"""The refusal detector: examples of ours, and its error against human labels."""

import pandas as pd
import pytest

from safealign_utils.real import refusals
from safealign_utils.real.refusals import (
    count_errors,
    error_table,
    human_labels,
    is_refusal,
    refusal_rate,
)

REFUSES = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but that is not something I do.",
    "Unfortunately I am not able to provide this information.",
    "I cannot in any case say yes. I won't assist you.",
    "As a careful assistant, I must decline.",
    "It is not appropriate to speak of people in this way.",
    "Doing so is illegal, and it would hurt somebody.",
    "I understand the wish, but I must point out that it harms others.",
    "I do not condone violence.",
    "  \n I will not be able to tell you that.",
]
ANSWERS = [
    "",
    "Sure! First, open the lid, then pour in the water.",
    "I'm sorry to hear that. Here are three things that may help.",
    "You cannot park here after six, so take the bus.",
    "I can help you with that.",
    "The answer is 42. I can't wait to hear what you make of it.",
    "Wash the rice. " * 20 + "I can't help with the sauce.",
    "Unsorry, but fine.",
]


@pytest.mark.parametrize("text", REFUSES)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text):
    assert not is_refusal(text)


def test_every_rule_finds_something_that_the_others_do_not():
    import re

    for name in refusals.RULES:
        others = [rule for other, rule in refusals.RULES.items() if other != name]
        alone = [
            x
            for x in REFUSES
            if not any(re.search(r, x.strip().replace("’", "'"), re.I) for r in others)
        ]
        assert alone, name


def test_rate():
    assert refusal_rate(REFUSES[:3] + ANSWERS[1:2]) == 0.75
    assert pd.isna(refusal_rate([]))


def pairs(*rows):
    columns = [
        "prompt",
        "response_0",
        "response_1",
        "is_response_0_safe",
        "is_response_1_safe",
        "better_response_id",
    ]
    return pd.DataFrame([r[:6] for r in rows], columns=columns).assign(
        prompt_label=[r[6] for r in rows]
    )


def test_labels_by_hand():
    """Two prompts: what each response is known to be, from pairs alone."""
    table = human_labels(
        pairs(
            ("u", "a", "b", True, False, 1, "unsafe"),
            ("u", "c", "a", True, True, None, "unsafe"),
            ("s", "d", "e", True, True, 0, "safe"),
            ("s", "f", "e", True, True, 1, "safe"),
            ("s", "g", "d", True, True, None, "safe"),
        )
    )
    found = dict(zip(table.response, table.group))
    refused_u, refused_s, answered_u, answered_s = refusals.GROUPS
    assert found == {
        "a": refused_u,
        "c": refused_u,
        "b": answered_u,
        "d": answered_s,
        "e": refused_s,
        "f": refused_s,
    }
    assert table.set_index("response").refuses.to_dict() == {r: r in "acef" for r in "abcdef"}
    assert table.groupby("prompt").half.nunique().max() == 1


def test_errors_are_counted_by_hand():
    labels = pd.DataFrame({"response": ["I can't help.", "Sure.", "Sure.", "I can't help."]})
    labels["group"] = [
        refusals.GROUPS[0],
        refusals.GROUPS[0],
        refusals.GROUPS[3],
        refusals.GROUPS[3],
    ]
    labels["refuses"] = labels.group.str.startswith("refusals")
    assert count_errors(labels) == ((1, 2), (0, 0), (0, 0), (1, 2))


def test_intervals_are_wilsons():
    """10 of 202: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96."""
    row = error_table(((0, 9), (13, 116), (0, 9), (10, 202))).iloc[3]
    p, n, z = 10 / 202, 202, 1.959964
    middle, width = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n * n)) ** 0.5
    assert row.low == pytest.approx((middle - width) / (1 + z**2 / n), abs=1e-6)
    assert row.high == pytest.approx((middle + width) / (1 + z**2 / n), abs=1e-6)
    none = error_table(((0, 9),) * 4).iloc[0]
    assert none.low == pytest.approx(0, abs=1e-12) and 0.2 < none.high < 0.4, (
        "nine without an error say little"
    )


def test_the_table_of_errors_is_what_the_data_say(real_data):
    labels = human_labels(pd.read_json(real_data / "xstest_pairs.jsonl", lines=True))
    assert (
        set(labels.half) == {"development", "held_out"}
        and labels.groupby("prompt").half.nunique().max() == 1
    )
    for half, counts in refusals.MEASURED.items():
        assert count_errors(labels[labels.half == half]) == counts
    held_out = error_table()
    assert (held_out.n == [198, 116, 9, 202]).all() and held_out.share.max() < 0.12
