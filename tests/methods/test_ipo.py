"""IPO: its loss by hand, its optimum by exact minimisation, and what a label without noise does
to it."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from safealign_utils import pairs, train
from safealign_utils.methods.ipo import ipo, win_rates
from safealign_utils.world import optimum


def test_the_loss_by_hand():
    z = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert ipo(z, 0.5).tolist() == pytest.approx([1.0, 0.0, 1.0])  # log-ratios 0, 1 and 2
    assert ipo(z, 0.2).tolist() == pytest.approx([6.25, 0.0, 6.25])  # 0, 2.5 and 5; the margin 2.5


def test_the_optimum_minimises_the_loss_over_all_pairs():
    """On pairs of two draws, winners by Bradley-Terry, no policy has a smaller mean loss than
    the stated one."""
    g = np.random.default_rng(0)
    reward, logp_ref, drawn = g.normal(size=(1, 5)), np.log(g.dirichlet(np.ones(5)))[None], None
    drawn, tau = g.dirichlet(np.ones(5))[None], 0.7
    wins = expit(reward[0][:, None] - reward[0][None, :])

    def loss(scores):
        h = (scores - logp_ref[0])[:, None] - (scores - logp_ref[0])[None, :]
        of_pair = wins * (h - 1 / (2 * tau)) ** 2 + (1 - wins) * (-h - 1 / (2 * tau)) ** 2
        return float((drawn[0][:, None] * drawn[0][None, :] * of_pair).sum())

    stated = optimum.optimal(logp_ref, win_rates(reward, drawn), beta=tau)
    found = minimize(loss, logp_ref[0], method="BFGS", options={"gtol": 1e-10}).x
    assert loss(stated[0]) == pytest.approx(loss(found), abs=1e-9)
    assert optimum.normalise(found[None]) == pytest.approx(stated, abs=1e-4)


def test_training_starts_where_it_must(reference, world):
    tokens = pairs.tokenize(pairs.label(world.pairs(32, seed=0)), reference)
    setting = dict(steps=2, batch_size=8, learning_rate=1e-3, seed=0, use_cache=False)
    run = train.align(reference, tokens, beta=0.5, link=ipo, **setting)
    assert run.log.loss[0] == pytest.approx(1.0, abs=1e-6)
