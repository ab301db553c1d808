"""The two benchmarks on trained policies: their summaries follow from the rows by seed; choices and controls by hand."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import rates
import two_worlds
from helpers.trainings import TABLES, collect

from safealign_utils import evaluate
from safealign_utils.intervals import summarise
from safealign_utils.world import optimum
from safealign_utils.world.world import World


@pytest.fixture(scope="module")
def harder():
    return World("attributes")


def committed(name):
    return pd.read_csv(TABLES / name)


def same(left, right):
    pd.testing.assert_frame_equal(left, right.round(6), check_dtype=False, atol=2e-6)


def test_the_summary_of_both_worlds_follows_from_its_rows():
    rows = committed("two_worlds_seeds.csv").to_dict("records")
    by = ["world", "split", "method", "read"]
    same(committed("two_worlds.csv"), summarise(rows, by, two_worlds.SHOWN))


def test_the_choice_of_rates_follows_from_its_rows():
    if not (TABLES / "rates_seeds.csv").is_file():
        pytest.skip("the sweep is not among the tables yet: python tests/benchmarks/rates.py")
    rows = committed("rates_seeds.csv")
    rows = rates.complete(rows, sorted(rows.seed.unique()), sorted(rows.method.unique()))
    trials = summarise(rows.to_dict("records"), ["method", "rate", "steps"], rates.QUANTITIES)
    same(committed("rates.csv"), rates.chosen(trials))


def test_the_gap_between_hard_and_soft_labels_by_hand():
    kl = {("dpo", "a"): [0.3, 0.5], ("dpo", "b"): [0.2, 0.3], "soft": [0.1, 0.1]}
    rows = [
        {
            "seed": seed,
            "method": m,
            "setting": words,
            "kl_opt": kl.get((m, words), kl["soft"])[seed],
        }
        for seed in (0, 1)
        for words in "ab"
        for m in ("dpo", "dpo_soft")
    ]
    table = rates.gaps(pd.DataFrame(rows))
    assert table.gap.tolist() == pytest.approx([0.3, 0.15])
    assert table.of_full.tolist() == pytest.approx([1.0, 0.5])


def test_only_trials_that_every_method_has_count():
    rows = [
        {"method": m, "rate": rate, "steps": 200, "seed": 0}
        for rate in (1e-3, 3e-3)
        for m in rates.METHODS
    ]
    assert set(rates.complete(pd.DataFrame(rows[:-1]), [0]).rate) == {1e-3}
    assert rates.complete(pd.DataFrame(rows), [0, 1]).empty


def test_the_loss_chooses_and_the_distance_is_said():
    table = pd.DataFrame({"method": list("aabb"), "loss": [0.5, 0.4, 0.6, 0.7]})
    table = rates.chosen(table.assign(kl_opt=[0.1, 0.2, 0.3, 0.2]))
    assert table.chosen.tolist() == [False, True, True, False]
    assert table.nearest.tolist() == [True, False, False, True]


def test_a_policy_that_knows_the_noun_alone_says_nothing_by_words(harder):
    """Log-ratios that cancel over the nouns of an intent leave the reference; those that are the same for all stay."""
    ids = two_worlds.prompts(harder)
    ref = {
        s: evaluate.Exact(optimum.normalise(np.log(harder.behaviour[x])), np.zeros(len(x)), x)
        for s, x in ids.items()
    }
    shared = np.linspace(-1, 1, len(harder.responses))
    intents = [harder.prompts[x].intent for x in ids["train"]]
    own = np.random.default_rng(0).normal(size=(len(intents), len(harder.responses)))
    for intent in set(intents):
        rows = np.array([i == intent for i in intents])
        own[rows] -= own[rows].mean(axis=0)
    for change, wanted in ((own, 0.0), (shared + own, shared)):
        theta = evaluate.Exact(ref["train"].logp + change, ref["train"].leak, ids["train"])
        found = two_worlds.by_words(harder, theta, ref, "heldout")
        assert np.allclose(found.logp, optimum.normalise(ref["heldout"].logp + wanted))


def test_rows_that_are_there_are_not_made_again(tmp_path):
    asked = []

    def work(seed):
        asked.append(seed)
        return [{"value": 0.5 * seed}]

    for keys in ([(1,), (2,)], [(1,), (2,), (3,)]):
        table = collect(tmp_path / "rows.csv", work, keys, ["seed"])
    assert asked == [1, 2, 3] and table.value.tolist() == [0.5, 1.0, 1.5]
