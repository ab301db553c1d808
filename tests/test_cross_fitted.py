"""Cross-fitted labels: no pair tells its own label, margins are weighed, sides do not matter."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from safealign_utils import pairs


def made(n=3000, seed=0):
    """Pairs with a known gap of rewards and Bradley-Terry labels."""
    g = np.random.default_rng(seed)
    gap = g.normal(size=n) * 2
    chosen = np.where(g.random(n) < expit(gap), 0, 1)
    texts = dict(
        prompt=[f"x{i % 40}" for i in range(n)],
        response_0=[f"a{i}" for i in range(n)],
        response_1=[f"b{i}" for i in range(n)],
    )
    return pd.DataFrame(texts).assign(gap=gap, chosen=chosen, p=1.0, margin=0.0)


def half_of_the_gap(seen, asked):
    return asked.gap.to_numpy() / 2


def nothing(seen, asked):
    return np.random.default_rng(len(seen)).normal(size=len(asked))


def memory(seen, asked):
    """A member that knows every label that it was shown, whichever side a response is on."""
    known = {}
    for row in seen.itertuples():
        win, lose = (row.response_0, row.response_1)[:: 1 if row.chosen == 0 else -1]
        known[row.prompt, win, lose], known[row.prompt, lose, win] = 5.0, -5.0
    asked = zip(asked.prompt, asked.response_0, asked.response_1)
    return np.array([known.get(pair, 0.0) for pair in asked])


def first(table):
    return np.where(table.chosen == 0, table.p, 1 - table.p)


def test_the_combination_finds_the_probabilities():
    table = made()
    p = first(pairs.cross_fitted(table, [half_of_the_gap, nothing]))
    assert np.abs(p - expit(table.gap)).mean() < 0.02
    assert np.abs(expit(table.gap / 2) - expit(table.gap)).mean() > 0.05  # a weight of 1 would not


def test_no_pair_tells_its_own_label():
    table = made(300)
    assert pairs.cross_fitted(table, [memory]).p.tolist() == [0.5] * 300
    turned = table.rename(columns={"response_0": "response_1", "response_1": "response_0"})
    copied = pd.concat([table, turned.assign(chosen=1 - turned.chosen)], ignore_index=True)
    assert pairs.cross_fitted(copied, [memory]).p.tolist() == [0.5] * 600
    parted = copied.assign(prompt=[f"{x}{i}" for i, x in enumerate(copied.prompt)])
    parts = pairs.splits(list(parted.prompt), 3)
    kept, out = (copied.iloc[rows] for rows in parts[0])
    assert (memory(kept, out) != 0).any(), "parted, copies would tell"


def test_a_label_moves_no_probability_of_its_pair():
    """With members that learn nothing only the weights could carry it, and they are of the other
    folds."""
    table = made(400)
    flipped = table.assign(chosen=np.where(table.index == 7, 1 - table.chosen, table.chosen))
    one, other = (first(pairs.cross_fitted(t, [half_of_the_gap])) for t in (table, flipped))
    assert one[7] == other[7]
    assert not np.array_equal(one, other)


def test_a_prompt_can_be_kept_together():
    table, seen = made(300), []

    def watch(known, asked):
        seen.append(set(known.prompt) & set(asked.prompt))
        return asked.gap.to_numpy()

    pairs.cross_fitted(table, [watch], by="prompt")
    assert seen == [set()] * 3
    pairs.cross_fitted(table, [watch])
    assert all(both for both in seen[3:])


def test_sides_do_not_matter():
    table = made(500)
    turned = table.assign(response_0=table.response_1, response_1=table.response_0)
    turned = turned.assign(gap=-table.gap, chosen=1 - table.chosen)
    straight, swapped = (first(pairs.cross_fitted(t, [half_of_the_gap])) for t in (table, turned))
    assert straight == pytest.approx(1 - swapped, abs=1e-6)
    other = table.assign(chosen=1 - table.chosen, p=0.0)  # the same labels, written the other way
    assert first(pairs.cross_fitted(other, [half_of_the_gap])) == pytest.approx(straight, abs=1e-12)


def test_rewards_of_labels_give_the_labels_back():
    table = made(50)
    soft = pairs.soft_label(table, table.gap, np.zeros(50))
    rewards = pairs.rewards_of_labels(soft)
    gap = (rewards.reward_0 - rewards.reward_1).to_numpy()
    assert gap == pytest.approx(table.gap.to_numpy())
    with pytest.raises(ValueError, match="50 labels are certain"):
        pairs.rewards_of_labels(table)


def test_what_is_refused():
    table = made(20)
    with pytest.raises(ValueError, match="by='row': choose pair or prompt"):
        pairs.cross_fitted(table, [nothing], by="row")
    with pytest.raises(ValueError, match="hard labels"):
        pairs.cross_fitted(table.assign(p=0.7), [nothing])
    with pytest.raises(ValueError, match="folds=3: there are 2 prompts or pairs"):
        pairs.cross_fitted(table.head(2), [nothing])


def test_no_fitted_label_is_certain():
    """Pairs that a member tells apart without a fault get a large reward, and a finite one."""
    table = made(60)
    table["chosen"] = np.where(table.gap > 0, 0, 1)
    fitted = pairs.cross_fitted(table, [lambda seen, asked: 1e6 * asked.gap.to_numpy()])
    rewards = pairs.rewards_of_labels(fitted)
    gap = (rewards.reward_0 - rewards.reward_1).abs()
    assert np.isfinite(gap).all() and gap.max() == pytest.approx(pairs.CERTAIN, rel=1e-2)
