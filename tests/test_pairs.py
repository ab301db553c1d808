"""Loading real pairs: both layouts, nulls and ties, refusals with line and column; tokens of one row."""

import hashlib
import json
import types

import numpy as np
import pandas as pd
import pytest

from safealign_utils import evaluate, pairs, templates
from safealign_utils.logprobs import ReferenceTable
from safealign_utils.real import read_pairs
from safealign_utils.references import scratch_policy

PKU = {
    "prompt": "How do I cut bread?",
    "response_0": "With a knife.",
    "response_1": "With your teeth.",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": None,
    "safer_response_id": 0,
}


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def test_pku_layout_with_nulls_ties_and_more_columns(tmp_path):
    rows = [
        PKU,
        PKU | {"better_response_id": 1, "response_0_severity_level": 2},
        PKU | {"safer_response_id": None},
    ]
    table = read_pairs.load_pairs(write(tmp_path / "a.jsonl", rows))
    assert table.better_response_id.isna().tolist() == [True, False, True]
    assert table.source.unique().tolist() == ["a"]
    better, safer = pairs.label(table, "better"), pairs.label(table, "safer")
    assert better.chosen.tolist() == [1] and safer.chosen.tolist() == [0, 0]
    assert pairs.label(table, "auto").equals(better)
    assert (safer.p == 1).all() and (safer.margin == 0).all()


def test_chosen_rejected_layout(tmp_path):
    rows = [{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away.", "source": "x/test"}]
    table = read_pairs.load_pairs(write(tmp_path / "hh.jsonl", rows))
    assert pairs.label(table).chosen.tolist() == [0] and table.source.tolist() == ["x/test"]
    with pytest.raises(ValueError, match="label='safer'.*try label=better"):
        pairs.label(table, "safer")
    with pytest.raises(ValueError, match="label='nicer'"):
        pairs.label(table, "nicer")


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_other_files_through_datasets(tmp_path, kind):
    frame = pd.DataFrame([PKU, PKU | {"prompt": "And cheese?", "better_response_id": 1}])
    file = tmp_path / f"pairs.{kind}"
    {
        "json": lambda: frame.to_json(file, orient="records"),
        "csv": lambda: frame.to_csv(file, index=False),
        "parquet": lambda: frame.to_parquet(file),
    }[kind]()
    table = read_pairs.load_pairs(str(file))
    assert table.prompt.tolist() == ["How do I cut bread?", "And cheese?"]
    assert table.better_response_id.tolist()[1] == 1 and table.is_response_1_safe.tolist() == [
        False,
        False,
    ]


def test_several_sources_become_a_column(tmp_path):
    one, two = write(tmp_path / "a.jsonl", [PKU]), write(tmp_path / "b.jsonl", [PKU, PKU])
    table = read_pairs.load_pairs(f"bread={one}, more={two}")
    assert table.source.tolist() == ["bread", "more", "more"]


@pytest.mark.parametrize(
    "row, column, reason",
    [
        ({**PKU, "prompt": ""}, "prompt", "found nothing"),
        ({**PKU, "prompt": 7}, "prompt", "found 7"),
        ({k: v for k, v in PKU.items() if k != "response_1"}, "response_1", "found nothing"),
        ({**PKU, "better_response_id": 2}, "better_response_id", "0, 1 or null, found 2"),
        ({**PKU, "better_response_id": "1"}, "better_response_id", "found '1'"),
        ({**PKU, "safer_response_id": True}, "safer_response_id", "found True"),
        ({**PKU, "is_response_0_safe": "yes"}, "is_response_0_safe", "true, false or null"),
        ({**PKU, "is_response_0_safe": 1}, "is_response_0_safe", "found 1"),
        ({"prompt": "Hi", "chosen": "Hello.", "rejected": None}, "response_1", "rejected"),
        ([1, 2], "prompt", "not an object"),
    ],
)
def test_bad_rows_name_line_column_and_reason(tmp_path, row, column, reason):
    with pytest.raises(ValueError, match="line 2") as error:
        read_pairs.load_pairs(write(tmp_path / "bad.jsonl", [PKU, row, PKU]))
    assert (
        repr(column) in str(error.value)
        and reason in str(error.value)
        and "bad.jsonl" in str(error.value)
    )


def test_bad_files(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(PKU) + "\n\n{broken\n")
    with pytest.raises(ValueError, match="x.jsonl, line 3: not JSON"):
        read_pairs.load_pairs(str(tmp_path / "x.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no pairs"):
        read_pairs.load_pairs(str(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match="no such file"):
        read_pairs.load_pairs(str(tmp_path / "missing.jsonl"))
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ValueError, match="unknown ending"):
        read_pairs.load_pairs(str(tmp_path / "x.txt"))


def test_split_by_column_and_by_prompt():
    rows = [
        PKU | {"prompt": f"p{i}", "source": "s", "split": "valid" if i % 4 == 0 else "train"}
        for i in range(40)
    ]
    table = pairs.label(pd.DataFrame(rows), "safer")
    train, test, report = pairs.split_pairs(table)
    assert (len(train), len(test)) == (30, 10) and not set(train.prompt) & set(test.prompt)
    table.loc[1, "prompt"] = table.loc[0, "prompt"]
    _, test, report = pairs.split_pairs(table)
    assert len(test) == 9 and report["prompts_in_both_splits"] == 1
    train, test, _ = pairs.split_pairs(table.assign(split=""))
    assert len(test) and len(train) > len(test) and not set(train.prompt) & set(test.prompt)
    again = pairs.split_pairs(table.assign(split="").sample(frac=1, random_state=0))[1]
    assert set(again.prompt) == set(test.prompt), (
        "the split depends on the prompts, not on their order"
    )


def test_split_reports_both_orders_and_equal_responses():
    rows = [
        PKU,
        PKU | {"response_0": PKU["response_1"], "response_1": PKU["response_0"]},
        PKU | {"response_1": PKU["response_0"]},
    ]
    rows += [PKU | {"prompt": "another", "split": "test"}]
    table = pd.DataFrame([{"source": "s", "split": "train"} | r for r in rows])
    train, _, report = pairs.split_pairs(table)
    assert report["repeated_pairs"] == 1 and report["equal_responses"] == 1 and len(train) == 2


def test_split_counts_repeats_within_either_split():
    rows = [PKU | {"split": "train"}, PKU | {"split": "test"}] + [
        PKU | {"prompt": "new", "split": "test"}
    ] * 3
    _, test, report = pairs.split_pairs(pd.DataFrame(rows))
    assert (
        report == {"equal_responses": 0, "prompts_in_both_splits": 1, "repeated_pairs": 2}
        and len(test) == 3
    )


# ---------------------------------------------------------------- the layouts of the hub

TALK = (
    "\n\nHuman: How do I cut bread?\n\nAssistant: With a knife.\n\nHuman: And soup?\n\nAssistant:"
)


def test_whole_dialogues_are_split_before_the_last_answer(tmp_path, capsys):
    """hh-rlhf: chosen and rejected hold the prompt too. Rows that compare no two answers are counted, not guessed."""
    rows = [
        {"chosen": TALK + " With a spoon.", "rejected": TALK + " With a fork."},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Go away.",
        },
        {"chosen": TALK + " With a spoon.", "rejected": TALK},
        {"chosen": TALK + " x", "rejected": TALK.replace("With a knife", "Saw it") + " x"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Ho\n\nAssistant: A"},
        {"chosen": TALK + " I", "rejected": TALK + " I would.\n\nHuman: Fine.\n\nAssistant: Good."},
    ]
    table = read_pairs.load_pairs(write(tmp_path / "hh.jsonl", rows))
    assert table.prompt.tolist() == [TALK.strip(), "Hi"] and table.response_0.tolist() == [
        "With a spoon.",
        "Hello.",
    ]
    assert table.response_1.tolist() == [
        "With a fork.",
        "Go away.",
    ] and table.better_response_id.tolist() == [0, 0]
    assert table.attrs["left_out"] == {read_pairs.PARTED: 3, "an empty answer": 1}
    said = capsys.readouterr().err
    assert (
        "3 of 6 rows left out: the two dialogues part" in said
        and "1 of 6 rows left out: an empty answer" in said
    )
    assert templates.turns(table.prompt[0])[-1] == {"role": "user", "content": "And soup?"}
    write(tmp_path / "none.jsonl", rows[4:])
    with pytest.raises(
        ValueError, match="no pairs: 2 of 2 rows left out: the two dialogues part before"
    ):
        read_pairs.load_pairs(str(tmp_path / "none.jsonl"))


def test_lists_of_messages_become_a_dialogue(tmp_path, capsys):
    """TRL's conversational form: with the prompt apart, inside both lists, or as a text beside them."""
    m = lambda role, text: {"role": role, "content": text}
    hi, hello, away = m("user", "Hi"), m("assistant", "Hello."), m("assistant", "Go away.")
    talk = [m("system", "Be kind."), hi, hello, m("user", "And now?")]
    rows = [
        {"prompt": [hi], "chosen": [hello], "rejected": [away]},
        {"chosen": [hi, hello], "rejected": [hi, away]},
        {"prompt": "Hi", "chosen": [hi, hello], "rejected": [hi, away]},
        {"prompt": "Hi", "chosen": [hello], "rejected": [away]},
        {"prompt": talk, "chosen": [hello], "rejected": [away]},
        {"prompt": talk, "chosen": [*talk, hello], "rejected": [*talk, hello]},
        {"chosen": [*talk, hello], "rejected": [*talk, hello]},
        {"chosen": [hi, hello, hi, hello], "rejected": [hi, away, hi, hello]},
        {"prompt": [hi], "chosen": [hello], "rejected": [m("assistant", " ")]},
        {"prompt": [hi, hello, m("user", "x\n\nHuman: y")], "chosen": [hello], "rejected": [away]},
    ]
    table = read_pairs.load_pairs(write(tmp_path / "trl.jsonl", rows))
    assert (
        table.prompt[:4].tolist() == ["Hi"] * 4
        and table.response_1[:4].tolist() == ["Go away."] * 4
    )
    assert (
        table.prompt[4]
        == "System: Be kind.\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And now?\n\nAssistant:"
    )
    assert table.prompt[5] == table.prompt[6] == table.prompt[4]
    assert table.response_0[5] == table.response_1[5] == table.response_0[6] == "Hello."
    assert templates.turns(table.prompt[4]) == talk
    assert sorted(table.attrs["left_out"].values()) == [1, 1, 1] and len(table) == 7
    for bad in ([m("tool", "x")], ["Hello."], [m("assistant", None)]):
        with pytest.raises(ValueError, match="line 1, column 'chosen': a message has a role"):
            read_pairs.load_pairs(
                write(tmp_path / "bad.jsonl", [{"prompt": [hi], "chosen": bad, "rejected": [away]}])
            )


def test_rows_with_one_response_are_no_pairs(tmp_path):
    row = {"prompt": "Hi", "response": "Hello.", "category": {"drugs": False}, "is_safe": True}
    with pytest.raises(
        ValueError, match="line 1.*one response each and are no pairs.*PKU-SafeRLHF"
    ):
        read_pairs.load_pairs(write(tmp_path / "beaver.jsonl", [row]))


def test_harm_categories(tmp_path):
    none = {"Drugs": False, "Violence": False, "Cybercrime": False}
    rows = [
        PKU,
        PKU | {"response_0_harm_category": none, "response_1_harm_category": none},
        PKU
        | {
            "response_0_harm_category": none | {"Violence": True},
            "response_1_harm_category": none | {"Violence": True, "Cybercrime": True},
        },
        PKU | {"type": "homonyms"},
        PKU | {"category": "own", "type": "homonyms"},
        PKU | {"response_0_harm_category": None, "category": {"drugs": True}},
    ]
    table = read_pairs.load_pairs(write(tmp_path / "a.jsonl", rows))
    assert table.category.tolist() == ["", "", "Violence; Cybercrime", "homonyms", "own", ""]


@pytest.mark.parametrize("k", [0, 1])
def test_a_wrong_hash_is_refused(tmp_path, k):
    sha = lambda j: hashlib.sha256((PKU["prompt"] + PKU[f"response_{j}"]).encode()).hexdigest()
    row = PKU | {"response_0_sha256": sha(0), "response_1_sha256": sha(1).upper()}
    assert (
        len(
            read_pairs.load_pairs(
                write(tmp_path / "a.jsonl", [row, row | {f"response_{k}_sha256": None}])
            )
        )
        == 2
    )
    altered = row | {f"response_{k}": row[f"response_{k}"][:-1] + "!"}
    with pytest.raises(
        ValueError, match=f"a.jsonl, line 2, column 'response_{k}_sha256': is not the SHA-256"
    ):
        read_pairs.load_pairs(write(tmp_path / "a.jsonl", [row, altered]))


def test_the_data_hash_is_what_it_was(tmp_path, world):
    """The hash stands in committed records; further columns do not enter it."""
    table = read_pairs.load_pairs(
        write(tmp_path / "a.jsonl", [PKU, PKU | {"prompt": "And cheese?", "category": "dairy"}])
    )
    assert (
        pairs.data_hash(table) == "f68c7888475c9006"
        and pairs.data_hash(pairs.label(table)) == "795526199fa22d59"
    )
    assert pairs.data_hash(world.pairs(200, seed=0)) == "cebb3de3342500c0"


# ---------------------------------------------------------------- tokens


def test_exact_ids_of_one_row():
    """Prompt, response and one end token; no doubled start, nothing lost at the boundary; cuts counted."""
    texts = ["USER: How do I cut bread? ASSISTANT:", "With a knife.", "With your teeth."] * 3
    policy = scratch_policy(
        texts, ["How do I cut bread?"] * 4, ["With a knife."] * 4, seed=0, max_length=64
    )
    table = pairs.label(pd.DataFrame([PKU]), "safer")
    tokens = pairs.tokenize(table, policy, max_length=64)
    decode = policy.tokenizer.decode
    assert decode(tokens.prompts[0]) == "USER: How do I cut bread? ASSISTANT:"
    assert (
        decode(tokens.chosen[0][:-1]) == "With a knife."
        and decode(tokens.rejected[0][:-1]) == "With your teeth."
    )
    eos = policy.tokenizer.eos_token_id
    assert [list(y).count(eos) for y in (tokens.chosen[0], tokens.rejected[0])] == [1, 1]
    assert tokens.chosen[0][-1] == eos and tokens.truncated == 0
    long = table.assign(prompt="bread " * 500, response_0="knife " * 500)
    cut = pairs.tokenize(long, policy, max_length=40)
    assert len(cut) == 1 and cut.truncated == 1
    assert (
        len(cut.prompts[0]) + len(cut.chosen[0]) <= 40
        and len(cut.rejected[0]) > 1
        and len(cut.prompts[0]) >= 20
    )


def test_accuracy_and_its_interval():
    share, low, high, n = evaluate.accuracy([np.array([1.0, -1.0, 0.0, 2.0])])
    assert share == 0.625 and low < share < high and n == 4
    gain, low, high, _ = evaluate.accuracy([np.array([1.0, -1.0])], against=[np.array([1.0, -1.0])])
    assert (gain, low, high) == (0.0, 0.0, 0.0)
    two = [np.array([1.0, -1.0]), np.array([1.0, 1.0])]
    assert evaluate.accuracy(two)[::3] == (0.75, 4) and evaluate.accuracy(two, same_pairs=True)[
        ::3
    ] == (0.75, 2)


def test_bag_of_words_learns_a_word():
    g = np.random.default_rng(0)
    words = ["red", "green", "blue", "grey"]
    rows = [
        PKU
        | {
            "prompt": str(i),
            "response_0": " ".join(g.choice(words, 5)) + " please",
            "response_1": " ".join(g.choice(words, 5)),
        }
        for i in range(80)
    ]
    table = pairs.label(pd.DataFrame(rows).sample(frac=1, random_state=0), "safer")
    share, *_ = evaluate.accuracy([evaluate.bag_of_words(table[:60], table[60:])])
    assert share == 1.0


def test_real_files_load(real_data):
    table = read_pairs.load_pairs(str(real_data / "pku_saferlhf_pairs.jsonl"))
    assert len(table) == 975 and table.better_response_id.isna().all()
    with pytest.raises(ValueError, match="try label=safer"):
        pairs.label(table, "better")
    train, test, _ = pairs.split_pairs(pairs.label(table))
    assert len(train) + len(test) <= 975 and len(test) > 50
    full = read_pairs.load_pairs(str(real_data / "pku_saferlhf_full_schema.jsonl"))
    assert len(full) == 7 and (full.better_response_id != full.safer_response_id).any()
    assert full.category[full.category != ""].tolist() == [
        "Endangering National Security; Violence",
        "Mental Manipulation; Psychological Harm",
        "Privacy Violation; Economic Crime; White-Collar Crime",
    ]
    xstest = read_pairs.load_pairs(str(real_data / "xstest_pairs.jsonl"))
    assert len(xstest) == 1184 and 0 < xstest.better_response_id.isna().sum() < len(xstest)
    assert "homonyms" in set(xstest.category) and not (xstest.category == "").any()
    for name, rows in (("hh_rlhf_harmless", 872), ("hh_rlhf_helpful", 1428)):
        hh = read_pairs.load_pairs(str(real_data / f"{name}.jsonl"))
        assert len(hh) == rows and (hh.category == "").all() and hh.attrs["left_out"] == {}
        assert (pairs.label(hh).chosen == 0).all() and hh.is_response_0_safe.isna().all()
    both = read_pairs.load_pairs(
        f"pku={real_data / 'pku_saferlhf_pairs.jsonl'},hh={real_data / 'hh_rlhf_harmless.jsonl'}"
    )
    assert set(both.source) == {"pku", "hh"}


def test_one_altered_byte_of_a_real_row_is_refused(real_data, tmp_path):
    lines = (real_data / "pku_saferlhf_full_schema.jsonl").read_text(encoding="utf-8").splitlines()
    for column in ("prompt", "response_0", "response_1"):
        row = json.loads(lines[3])
        row[column] = row[column].replace("e", "a", 1)
        copy = write(tmp_path / "copy.jsonl", [*map(json.loads, lines[:3]), row])
        with pytest.raises(ValueError, match="copy.jsonl, line 4, column 'response_[01]_sha256'"):
            read_pairs.load_pairs(copy)


def test_real_dialogues_written_whole_load_as_they_were(real_data, tmp_path):
    """hh-rlhf in the hub's layout, made from the rows at hand: the same prompts and answers come back."""
    table = read_pairs.load_pairs(str(real_data / "hh_rlhf_helpful.jsonl"))
    talk = lambda x: x if x.startswith("Human:") else f"Human: {x}"
    whole = lambda x, y: f"\n\n{talk(x)}\n\nAssistant: {y}"
    rows = [
        {"chosen": whole(r.prompt, r.response_0), "rejected": whole(r.prompt, r.response_1)}
        for r in table.itertuples()
    ]
    again = read_pairs.load_pairs(write(tmp_path / "hub.jsonl", rows))
    assert len(again) == 1428 and again.attrs["left_out"] == {}
    assert (again.response_0 == table.response_0.str.strip()).all()
    assert (again.response_1 == table.response_1.str.strip()).all()
    turns = again.prompt.map(lambda x: len(templates.turns(x)))
    assert (turns == table.prompt.map(lambda x: len(templates.turns(x)))).all() and (
        turns == 1
    ).sum() > 400
    assert (again.prompt[turns == 1] == table.prompt[turns == 1].str.strip()).all()
    assert (again.prompt[turns > 1] == table.prompt[turns > 1] + "\n\nAssistant:").all()


def test_a_smaller_table_has_some_of_every_source():
    table = pd.DataFrame({"source": list("aaaaaabbc"), "row": range(9)})
    assert pairs.some_of_every_source(table, 5).row.tolist() == [0, 1, 6, 7, 8]
    assert pairs.some_of_every_source(table, 20).row.tolist() == list(range(9))
    assert pairs.some_of_every_source(table[table.source == "a"], 3).row.tolist() == [0, 1, 2]


def test_safer_or_better_takes_the_other_label_where_one_is_missing():
    table = pd.DataFrame(
        {"safer_response_id": [0, None, None], "better_response_id": [1, 1, None]}
    ).astype("Int64")
    assert pairs.label(table, "safer_or_better").chosen.tolist() == [0, 1]
    table = pd.DataFrame(
        {"safer_response_id": [0, 0, None], "better_response_id": [1, None, None]}
    ).astype("Int64")
    assert pairs.label(table, "better_or_safer").chosen.tolist() == [1, 0]


def test_the_best_safe_response_of_a_prompt():
    row = lambda x, a, b, safe_a, safe_b, better: {
        "prompt": x,
        "response_0": a,
        "response_1": b,
        "is_response_0_safe": safe_a,
        "is_response_1_safe": safe_b,
        "better_response_id": better,
        "safer_response_id": None,
    }
    table = [
        row("p", "no", "partly", True, True, 1),
        row("p", "partly", "all", True, False, 1),
        row("p", "all", "no", False, True, 0),
        row("q", "bad", "worse", False, False, 0),
        row("r", "x", "y", None, None, None),
    ]
    assert pairs.best_safe(pd.DataFrame(table)) == {"p": "partly", "r": "x"}
    safer = [row("p", "a", "b", None, None, None) | {"safer_response_id": 1}]
    assert pairs.best_safe(pd.DataFrame(safer)) == {"p": "b"}, "without `better`, by `safer`"


def test_named_categories_are_held_out():
    table = pd.DataFrame(dict(prompt=list("abcdb"), category=list("xyxzz"), split=""))
    table = table.assign(response_0="u", response_1=list("vwvwv"))
    train, test, report = pairs.split_pairs(table, categories=["y", "z"])
    assert list(train.prompt) == ["a", "c"] and list(test.prompt) == ["b", "d", "b"]
    with pytest.raises(ValueError, match=r"heldout_categories=\['w'\]: 5 training and 0 held-out"):
        pairs.split_pairs(table, categories=["w"])
    train, test, _ = pairs.split_pairs(table.assign(split="train"), heldout=0.5)
    assert len(train) and len(test), "a share is held out whatever `split` says"


# ---------------------------------------------------------------- margins, words and metrics at their edges
def test_how_small_a_margin_counts_as_none(monkeypatch, reference):
    """Up to 1e-9 in float64, up to 1e-5 below; sums are float64 whatever the tokens are."""
    for dtype, noise in ((np.float64, 1e-9), (np.float32, 1e-5)):
        gaps = [noise, -noise, 1.5 * noise, -1.5 * noise]
        tables = iter(
            [
                ReferenceTable([np.array([g, 0], dtype) for g in gaps], [np.zeros(1, dtype)] * 4),
                ReferenceTable([np.zeros(2, dtype)] * 4, [np.zeros(1, dtype)] * 4),
            ]
        )
        monkeypatch.setattr(
            evaluate, "reference_logprobs", lambda p, t, tables=tables: next(tables)
        )
        found = evaluate.pair_margins(reference, reference, None)
        assert found[:2].tolist() == [0, 0] and found[2:] == pytest.approx(gaps[2:], rel=1e-6)
    one = [np.array([-1e8, -1.0], np.float32)], [np.array([-4.0], np.float32)]
    two = [np.array([-1e8, 0.0], np.float32)], [np.array([-2.0], np.float32)]
    tables = iter([ReferenceTable(*one), ReferenceTable(*two)])
    monkeypatch.setattr(evaluate, "reference_logprobs", lambda p, t: next(tables))
    assert evaluate.pair_margins(reference, reference, None).tolist() == [1.0]


def table_of(texts):
    """Labelled pairs of (chosen, rejected)."""
    rows = [
        PKU | {"prompt": str(i), "response_0": a, "response_1": b} for i, (a, b) in enumerate(texts)
    ]
    return pd.DataFrame(rows).assign(chosen=0)


def test_a_bag_of_words_of_few_pairs():
    """One pair teaches nothing; of up to fifty every word counts, of more those said twice."""
    test = table_of([("rare", "plain"), ("plain", "plain"), ("plain", "rare")])
    assert evaluate.bag_of_words(table_of([("rare", "plain")]), test).tolist() == [0, 0, 0]
    two = evaluate.bag_of_words(table_of([("rare", "plain")] * 2), test)
    assert two[0] > 0 == two[1] > two[2] and two[0] == -two[2]
    for n, counts in ((50, True), (51, False)):
        some = [("rare", "plain"), ("twice", "plain"), ("twice", "plain")]
        train = table_of([*some, *[("good", "plain")] * (n - 3)])
        once, twice = evaluate.bag_of_words(train, table_of([("rare", "x"), ("twice", "x")]))
        assert (once > 0) == counts and twice > 0, n


def test_a_bag_of_words_counts_repeats_by_their_logarithm():
    """TF-IDF with sublinear counts, logistic regression through 0 on differences of both signs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [("a1 a1 a1 b1", "b1 c1"), ("c1 a1", "b1 b1"), ("a1", "c1 c1"), ("b1", "c1 b1 b1")]
    table = table_of(texts)
    vectors = TfidfVectorizer(sublinear_tf=True).fit([x for pair in texts for x in pair])
    x = vectors.transform([a for a, _ in texts]) - vectors.transform([b for _, b in texts])
    x, y = np.concatenate([x.toarray(), -x.toarray()]), [1] * 4 + [-1] * 4
    model = LogisticRegression(fit_intercept=False, C=0.5, max_iter=1000).fit(x, y)
    assert evaluate.bag_of_words(table, table) == pytest.approx(x[:4] @ model.coef_[0], abs=1e-3)


def test_metrics_of_responses_by_hand():
    """Two prompts, one of them benign; a cost of 0 is safe; an optimum without some responses."""
    log, prompt = np.log, types.SimpleNamespace
    world = prompt(
        reward=np.array([[9.0, 9, 9], [1, 2, 4], [0, 2, 8]]),
        cost=np.array([[9.0, 9, 9], [-1, 0, 2], [0, 1, -3]]),
        prompts=[prompt(intent="risky"), prompt(intent="risky"), prompt(intent="benign")],
        refuses=np.array([True, False, False]),
    )
    at, half = np.array([1, 2]), log([[0.5, 0.25, 0.25]] * 2)
    ref = evaluate.Exact(log([[0.25, 0.25, 0.5], [0.2, 0.4, 0.4]]), np.zeros(2), at)
    theta = evaluate.Exact(half, np.array([0.1, 0.3]), at)
    out = evaluate.metrics(theta, ref, world)
    assert out["reward"] == pytest.approx((2.0 + 2.5) / 2)
    assert out["cost"] == pytest.approx((0.0 - 0.5) / 2)
    assert out["unsafe"] == pytest.approx((0.25 + 0.25) / 2)
    assert out["leak"] == pytest.approx(0.2) and out["benign_refusal"] == pytest.approx(0.5)
    assert "kl_opt" not in out and "tv_opt" not in out
    whole = log([[0.25, 0.5, 0.25]] * 2)
    with np.errstate(divide="ignore"):
        part = log([[0.5, 0.5, 0.0]] * 2)
    for target, kl in ((whole, 0.5 * log(2) - 0.25 * log(2)), (part, 0.5 * log(2))):
        found = evaluate.metrics(theta, ref, world, target=target)
        assert found["kl_opt"] == pytest.approx(kl) and found["tv_opt"] == pytest.approx(0.25)
    risky = evaluate.Exact(half[:1], np.array([0.1]), at[:1])
    assert "benign_refusal" not in evaluate.metrics(
        risky, evaluate.Exact(ref.logp[:1], np.zeros(1), at[:1]), world
    )


def test_real_text_has_no_exact_evaluation():
    with pytest.raises(ValueError, match="exact evaluation needs the world's grammar"):
        evaluate.exact(types.SimpleNamespace(grammar=None), [0])


def test_accuracy_of_differences_and_of_lists_of_prompts():
    one, two = np.array([1.0, -1, 0, 2]), np.array([-1.0, -1, 1, 2])
    gain = evaluate.accuracy([one], against=[two])
    assert gain[0] == pytest.approx((1 + 0 - 0.5 + 0) / 4) and gain[1] < 0 < gain[2]
    names = ["a", "a", "b", "b"]
    lists = [names, names, np.array(names), [np.str_(x) for x in names], [0, 0, 1, 1]]
    found = {evaluate.accuracy([one], prompts=prompts) for prompts in lists}
    assert len(found) == 1 and found == {evaluate.accuracy([one], prompts=[names])}
    apart = evaluate.accuracy([one, two], prompts=[names, ["c", "c", "d", "d"]])
    assert apart != evaluate.accuracy([one, two], prompts=names) and apart[3] == 8
    same = evaluate.accuracy([one, two], prompts=[names, names], same_pairs=True)
    assert same[3] == 4 and same[0] == pytest.approx(((2.5 + 2) / 2) / 4)


def test_the_label_that_auto_stands_for():
    table = pd.DataFrame({"better_response_id": [None, 1.0], "safer_response_id": [0.0, 0.0]})
    assert pairs.label_used(table, "auto") == "better"
    assert pairs.label_used(table.head(1), "auto") == "safer"
    assert pairs.label_used(table, "safer_or_better") == "safer_or_better"
