"""What is equal on paper is equal here, however the processor rounds: ties, labels, orders."""

import numpy as np
import one_ulp
import pandas as pd
import pytest
import torch

from safealign_utils import evaluate, pairs, train
from safealign_utils.loss import ordered
from safealign_utils.methods import cdpo, safedpo, token_controls

SETTING = dict(beta=0.5, steps=1, batch_size=32, learning_rate=3e-3, seed=0, use_cache=False)


@pytest.mark.parametrize("noise", range(3))
def test_an_untrained_policy_orders_half_of_the_pairs(reference, tokens, fresh_cache, noise):
    """At step 0 every gap is 0; noise must not make 0.21875 of it on one processor and 0.125 on another."""
    moved = one_ulp.nudged(reference, noise)
    assert moved.hash != reference.hash
    assert evaluate.pair_margins(moved, reference, tokens).tolist() == [0.0] * len(tokens)
    first = train.align(reference, tokens, start=moved, **SETTING).log.iloc[0]
    assert first.accuracy == 0.5 and first.loss == pytest.approx(np.log(2), abs=1e-12)


def test_noise_of_one_unit_in_the_last_place_goes_both_ways(reference):
    for a, b in zip(reference.model.parameters(), one_ulp.nudged(reference, 0).model.parameters()):
        moved = (b - a).detach()
        assert (moved != 0).all() and (
            (moved.abs() / a.detach().abs().clamp_min(1e-300)) < 2.3e-16 * 2
        ).all()
    assert (moved > 0).any() and (moved < 0).any()


def test_a_gap_within_rounding_counts_half():
    gaps = torch.tensor([1e-3, 1e-10, 0.0, -1e-10, -1e-3], dtype=torch.float64)
    assert ordered(gaps).tolist() == [1, 0.5, 0.5, 0.5, 0]
    assert ordered(gaps.float() * 1e4).tolist() == [1, 0.5, 0.5, 0.5, 0]


@pytest.mark.parametrize("noise", [1e-16, 1e-13])
def test_noise_of_a_score_moves_a_soft_label_no_farther(noise):
    """No jump of 1e-9 at a rounding boundary, and none of the loss where the two scores are equal."""
    g = np.random.default_rng(0)
    scores = g.normal(size=(20_000, 2))
    scores[:100, 1] = scores[:100, 0]
    table = pd.DataFrame(index=range(len(scores)))
    one, two = (
        pairs.soft_label(table, *(scores + move * g.uniform(-1, 1, scores.shape)).T)
        for move in (0, noise)
    )
    assert (one.chosen == two.chosen).all() and (one.chosen[:100] == 0).all()
    assert np.abs(one.p - two.p).max() < noise + 1e-15
    assert ((one.p >= 0.5 - 1e-9) & (one.p <= 1)).all()


def test_noise_of_the_multiplier_moves_relabelled_pairs_no_farther(world):
    table = pairs.label(world.pairs(1500, seed=0))
    for by in ("soft", "coin", "argmax"):
        one, two = (cdpo.relabel(table, lam, by=by) for lam in (0.5194855315, 0.5194855315 + 1e-13))
        assert (one.chosen == two.chosen).all() and np.abs(one.p - two.p).max() < 1e-12
    soft = safedpo.transform(pairs.soft_label(table, table.reward_0, table.reward_1))[0]
    one, two = (safedpo.with_finite_target(soft, penalty) for penalty in (5.0, 5.0 + 1e-13))
    assert np.abs(one.p - two.p).max() < 1e-12


def test_equal_scores_stay_equal_at_any_boundary_of_rounding():
    """Copies of one score, apart by noise, tie wherever they lie; rounding would part those at a boundary."""
    g = np.random.default_rng(1)
    level = np.repeat(np.arange(40) * 0.01 + 0.5e-9, 25)  # on the boundary of nine digits
    positive = g.random(len(level)) < level + 0.2
    found = {
        token_controls.auc(level + 1e-15 * g.normal(size=len(level)), positive) for _ in range(5)
    }
    assert found == {token_controls.auc(np.repeat(np.arange(40.0), 25), positive)}
