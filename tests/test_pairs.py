"""Loading real pairs: both layouts, nulls and ties, refusals with line and column; tokens of one row."""

import json

import numpy as np
import pandas as pd
import pytest

from safealign_utils import evaluate, pairs
from safealign_utils.policy import scratch_policy

PKU = {
    "prompt": "How do I cut bread?", "response_0": "With a knife.", "response_1": "With your teeth.",
    "is_response_0_safe": True, "is_response_1_safe": False, "better_response_id": None, "safer_response_id": 0,
}  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def test_pku_layout_with_nulls_ties_and_more_columns(tmp_path):
    rows = [PKU, PKU | {"better_response_id": 1, "response_0_severity_level": 2}, PKU | {"safer_response_id": None}]
    table = pairs.load_pairs(write(tmp_path / "a.jsonl", rows))
    assert table.better_response_id.isna().tolist() == [True, False, True]
    assert table.source.unique().tolist() == ["a"]
    better, safer = pairs.label(table, "better"), pairs.label(table, "safer")
    assert better.chosen.tolist() == [1] and safer.chosen.tolist() == [0, 0]
    assert pairs.label(table, "auto").equals(better)
    assert (safer.p == 1).all() and (safer.margin == 0).all()


def test_chosen_rejected_layout(tmp_path):
    rows = [{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away.", "source": "x/test"}]
    table = pairs.load_pairs(write(tmp_path / "hh.jsonl", rows))
    assert pairs.label(table).chosen.tolist() == [0] and table.source.tolist() == ["x/test"]
    with pytest.raises(ValueError, match="label='safer'.*try label=better"):
        pairs.label(table, "safer")
    with pytest.raises(ValueError, match="label='nicer'"):
        pairs.label(table, "nicer")


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_other_files_through_datasets(tmp_path, kind):
    frame = pd.DataFrame([PKU, PKU | {"prompt": "And cheese?", "better_response_id": 1}])
    file = tmp_path / f"pairs.{kind}"
    {"json": lambda: frame.to_json(file, orient="records"), "csv": lambda: frame.to_csv(file, index=False),
     "parquet": lambda: frame.to_parquet(file)}[kind]()  # fmt: skip
    table = pairs.load_pairs(str(file))
    assert table.prompt.tolist() == ["How do I cut bread?", "And cheese?"]
    assert table.better_response_id.tolist()[1] == 1 and table.is_response_1_safe.tolist() == [False, False]


def test_several_sources_become_a_column(tmp_path):
    one, two = write(tmp_path / "a.jsonl", [PKU]), write(tmp_path / "b.jsonl", [PKU, PKU])
    table = pairs.load_pairs(f"bread={one}, more={two}")
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
        pairs.load_pairs(write(tmp_path / "bad.jsonl", [PKU, row, PKU]))
    assert repr(column) in str(error.value) and reason in str(error.value) and "bad.jsonl" in str(error.value)


def test_bad_files(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(PKU) + "\n\n{broken\n")
    with pytest.raises(ValueError, match="x.jsonl, line 3: not JSON"):
        pairs.load_pairs(str(tmp_path / "x.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no pairs"):
        pairs.load_pairs(str(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match="no such file"):
        pairs.load_pairs(str(tmp_path / "missing.jsonl"))
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ValueError, match="unknown ending"):
        pairs.load_pairs(str(tmp_path / "x.txt"))


def test_split_by_column_and_by_prompt():
    rows = [PKU | {"prompt": f"p{i}", "source": "s", "split": "valid" if i % 4 == 0 else "train"} for i in range(40)]
    table = pairs.label(pd.DataFrame(rows), "safer")
    train, test, report = pairs.split_pairs(table)
    assert (len(train), len(test)) == (30, 10) and not set(train.prompt) & set(test.prompt)
    table.loc[1, "prompt"] = table.loc[0, "prompt"]
    _, test, report = pairs.split_pairs(table)
    assert len(test) == 9 and report["prompts_in_both_splits"] == 1
    train, test, _ = pairs.split_pairs(table.assign(split=""))
    assert len(test) and len(train) > len(test) and not set(train.prompt) & set(test.prompt)
    again = pairs.split_pairs(table.assign(split="").sample(frac=1, random_state=0))[1]
    assert set(again.prompt) == set(test.prompt), "the split depends on the prompts, not on their order"


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


def test_exact_ids_of_one_row():
    """Prompt, response and one end token; no doubled start, nothing lost at the boundary; cuts counted."""
    texts = ["USER: How do I cut bread? ASSISTANT:", "With a knife.", "With your teeth."] * 3
    policy = scratch_policy(texts, ["How do I cut bread?"] * 4, ["With a knife."] * 4, seed=0, max_length=64)
    table = pairs.label(pd.DataFrame([PKU]), "safer")
    tokens = pairs.tokenize(table, policy, max_length=64)
    decode = policy.tokenizer.decode
    assert decode(tokens.prompts[0]) == "USER: How do I cut bread? ASSISTANT:"
    assert decode(tokens.chosen[0][:-1]) == "With a knife." and decode(tokens.rejected[0][:-1]) == "With your teeth."
    eos = policy.tokenizer.eos_token_id
    assert [list(y).count(eos) for y in (tokens.chosen[0], tokens.rejected[0])] == [1, 1]
    assert tokens.chosen[0][-1] == eos and tokens.truncated == 0
    long = table.assign(prompt="bread " * 500, response_0="knife " * 500)
    cut = pairs.tokenize(long, policy, max_length=40)
    assert len(cut) == 1 and cut.truncated == 1
    assert len(cut.prompts[0]) + len(cut.chosen[0]) <= 40 and len(cut.rejected[0]) > 1 and len(cut.prompts[0]) >= 20


def test_accuracy_and_its_interval():
    share, low, high, n = evaluate.accuracy([np.array([1.0, -1.0, 0.0, 2.0])])
    assert share == 0.625 and low < share < high and n == 4
    gain, low, high, _ = evaluate.accuracy([np.array([1.0, -1.0])], against=[np.array([1.0, -1.0])])
    assert (gain, low, high) == (0.0, 0.0, 0.0)
    two = [np.array([1.0, -1.0]), np.array([1.0, 1.0])]
    assert evaluate.accuracy(two)[::3] == (0.75, 4) and evaluate.accuracy(two, same_pairs=True)[::3] == (0.75, 2)


def test_bag_of_words_learns_a_word():
    g = np.random.default_rng(0)
    words = ["red", "green", "blue", "grey"]
    rows = [PKU | {"prompt": str(i), "response_0": " ".join(g.choice(words, 5)) + " please", "response_1": " ".join(g.choice(words, 5))}
            for i in range(80)]  # fmt: skip
    table = pairs.label(pd.DataFrame(rows).sample(frac=1, random_state=0), "safer")
    share, *_ = evaluate.accuracy([evaluate.bag_of_words(table[:60], table[60:])])
    assert share == 1.0


def test_real_files_load(real_data):
    table = pairs.load_pairs(str(real_data / "pku_saferlhf_pairs.jsonl"))
    assert len(table) == 975 and table.better_response_id.isna().all()
    with pytest.raises(ValueError, match="try label=safer"):
        pairs.label(table, "better")
    train, test, _ = pairs.split_pairs(pairs.label(table))
    assert len(train) + len(test) <= 975 and len(test) > 50
    full = pairs.load_pairs(str(real_data / "pku_saferlhf_full_schema.jsonl"))
    assert len(full) == 7 and (full.better_response_id != full.safer_response_id).any()
    xstest = pairs.load_pairs(str(real_data / "xstest_pairs.jsonl"))
    assert 0 < xstest.better_response_id.isna().sum() < len(xstest)
    for name in ("hh_rlhf_harmless", "hh_rlhf_helpful"):
        hh = pairs.load_pairs(str(real_data / f"{name}.jsonl"))
        assert (pairs.label(hh).chosen == 0).all() and hh.is_response_0_safe.isna().all()
    both = pairs.load_pairs(f"pku={real_data / 'pku_saferlhf_pairs.jsonl'},hh={real_data / 'hh_rlhf_harmless.jsonl'}")
    assert set(both.source) == {"pku", "hh"}


def test_a_smaller_table_has_some_of_every_source():
    table = pd.DataFrame({"source": list("aaaaaabbc"), "row": range(9)})
    assert pairs.some_of_every_source(table, 5).row.tolist() == [0, 1, 6, 7, 8]
    assert pairs.some_of_every_source(table, 20).row.tolist() == list(range(9))
    assert pairs.some_of_every_source(table[table.source == "a"], 3).row.tolist() == [0, 1, 2]


def test_safer_or_better_takes_the_other_label_where_one_is_missing():
    table = pd.DataFrame({"safer_response_id": [0, None, None], "better_response_id": [1, 1, None]}).astype("Int64")
    assert pairs.label(table, "safer_or_better").chosen.tolist() == [0, 1]
