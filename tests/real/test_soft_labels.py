"""Members of cross-fitting: which side they mean, whose labels they see, and what methods make of them."""

import numpy as np
import pytest

from safealign_utils import evaluate, pairs
from safealign_utils.methods import cdpo, safedpo
from safealign_utils.real import probe, soft_labels

MEMBER = dict(steps=3, batch_size=8, learning_rate=2e-3, seed=0)


@pytest.fixture(scope="module")
def table(world):
    return pairs.label(world.pairs(48, seed=0))


@pytest.fixture(scope="module")
def members(inside):
    return {
        "reward": soft_labels.RewardModel(inside, MEMBER),
        "implicit": soft_labels.ImplicitReward(inside, dict(MEMBER, beta=0.5)),
        "heads": soft_labels.Heads(probe.States(inside)),
    }


@pytest.mark.parametrize("name", ["reward", "implicit", "heads"])
def test_a_member_scores_response_0_over_response_1(members, table, name):
    """Labels that always name the longer response are learned, on either side and either way."""
    member, longer = members[name], (table.response_1.str.len() > table.response_0.str.len())
    seen = table.assign(chosen=longer.astype(int))
    asked = table.assign(chosen=0)
    margins = member(seen, asked)
    assert margins.shape == (48,) and np.corrcoef(margins, ~longer)[0, 1] > 0.3
    swapped = asked.assign(response_0=asked.response_1, response_1=asked.response_0)
    swapped = swapped.assign(y_0=asked.y_1, y_1=asked.y_0)
    assert member(seen, swapped) == pytest.approx(-margins, abs=1e-6)
    other = seen.assign(chosen=1 - seen.chosen, p=0.0)  # the same labels, written the other way
    if name != "implicit":  # its batches hold the responses in another order
        assert member(other, asked) == pytest.approx(margins, abs=1e-6)


def test_what_methods_make_of_them(inside, table):
    implicit = soft_labels.ImplicitReward(inside, dict(MEMBER, beta=0.5))
    soft = pairs.cross_fitted(table, [implicit, evaluate.bag_of_words], folds=2)
    assert ((soft.p > 0) & (soft.p < 1)).all() and soft.p.nunique() > 40
    kept = safedpo.safedpo(soft, delta=0.0)
    mixed = kept.is_response_0_safe != kept.is_response_1_safe
    assert (kept.p[mixed] == 1).all() and (kept.p[~mixed] < 1).all() and 0 < mixed.mean() < 1
    at_zero = cdpo.relabel(pairs.rewards_of_labels(soft), 0.0)
    assert at_zero.p.to_numpy() == pytest.approx(soft.p.to_numpy(), abs=1e-9)
    dear = cdpo.relabel(pairs.rewards_of_labels(soft), 100.0)
    cheaper = np.where(dear.cost_0 < dear.cost_1, 0, 1)
    unequal = dear.cost_0 != dear.cost_1
    assert (dear.chosen[unequal] == cheaper[unequal]).all()
