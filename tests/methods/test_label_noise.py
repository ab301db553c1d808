"""Losses for labels that may be wrong: by hand, in expectation, at their minima, and in training."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from safealign_utils import pairs, train
from safealign_utils.methods import label_noise as N
from safealign_utils.world import optimum

Z = torch.linspace(-3, 3, 13, dtype=torch.float64)
SHORT = dict(steps=1, batch_size=32, learning_rate=1e-3, seed=0, use_cache=False)


def numbers(p):
    return torch.full_like(Z, p)


def dpo(z):
    return -torch.nn.functional.logsigmoid(z)


def test_smoothed_labels(world):
    table = pairs.label(world.pairs(8, seed=0)).assign(p=[1.0] * 4 + [0.0] * 2 + [0.6] * 2)
    assert N.smoothed(table, 0.1).p.tolist() == [0.9] * 4 + [0.1] * 2 + [0.6] * 2
    with pytest.raises(ValueError, match="noise=0.5: the share of wrong labels"):
        N.smoothed(table, 0.5)


@pytest.mark.parametrize("p", [0.6, 0.75, 0.99])
def test_rdpo_is_unbiased_under_flips_and_smoothing_is_not(p):
    mean = p * N.robust(Z, 0.5, numbers(p)) + (1 - p) * N.robust(-Z, 0.5, numbers(p))
    assert torch.allclose(mean, dpo(Z), atol=1e-12)
    smooth = p * dpo(Z) + (1 - p) * dpo(-Z)
    assert not torch.allclose(p * smooth + (1 - p) * smooth.flip(0), dpo(Z), atol=1e-2)


def test_certain_labels_are_dpo():
    for link in (N.robust, N.geometric):
        assert torch.equal(link(Z, 0.5, numbers(1.0)), dpo(Z))


def test_gdpo_and_distillation_by_hand():
    assert N.geometric(Z, 0.5, numbers(0.5)).tolist() == pytest.approx([math.log(2)] * 13)
    assert float(N.geometric(torch.tensor(2.0), 0.5, torch.tensor(0.75))) == pytest.approx(
        math.log(1 + math.exp(-1.0))
    )
    gap = math.log(0.8 / 0.2)
    lost = N.distilled(torch.tensor([gap, gap + 2]), 0.5, torch.tensor([0.8, 0.8]))
    assert lost.tolist() == pytest.approx([0.0, 4.0], abs=1e-5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_dr_dpo_has_the_gradient_of_the_soft_minimum(temperature):
    one, other = Z.clone().requires_grad_(), Z.clone().requires_grad_()
    N.SoftMinimum(temperature)(one, 0.5).mean().backward()
    count = math.log(len(other))
    soft = -temperature * (torch.logsumexp(-dpo(other) / temperature, 0) - count)
    soft.backward()
    assert torch.allclose(one.grad, other.grad, atol=1e-12)
    assert torch.allclose(N.SoftMinimum(1e9)(Z, 0.5), dpo(Z), atol=1e-6)


def test_where_known_probabilities_lead():
    """On all pairs of six responses soft labels and distillation end at pi*, GDPO passes it."""
    g = np.random.default_rng(0)
    reward, beta = g.normal(size=(1, 6)), 0.7
    logp_ref = np.log(g.dirichlet(np.ones(6)))[None]
    i, j = np.triu_indices(6, 1)
    p = torch.from_numpy(expit(reward[0, i] - reward[0, j]))

    def end(link):
        def loss(h):
            h = torch.tensor(h, requires_grad=True)
            value = link(beta * (h[i] - h[j]), beta, p).sum() + 1e-12 * h.sum().square()
            value.backward()
            return value.item(), h.grad.numpy()

        h = minimize(loss, np.zeros(6), jac=True, options={"maxiter": 200}).x
        return optimum.normalise(logp_ref + h)

    best = optimum.optimal(logp_ref, reward, beta=beta)

    def soft(z, beta, p):
        return p * dpo(z) + (1 - p) * dpo(-z)

    assert optimum.total_variation(end(soft), best) < 1e-4
    assert optimum.total_variation(end(N.distilled), best) < 1e-4
    assert optimum.total_variation(end(N.geometric), best) > 0.1


def test_training_hands_each_link_the_labels(world, reference):
    table = pairs.label(world.pairs(32, seed=0))
    p = np.where(np.arange(32) % 2, 0.9, 0.7)
    tokens = pairs.tokenize(table.assign(p=p), reference)
    first = {}
    for link in (N.robust, N.geometric, N.distilled, N.SoftMinimum(1.0)):
        run = train.align(reference, tokens, beta=0.5, link=link, **SHORT)
        first[getattr(link, "__name__", "dr_dpo")] = run.log.loss[0]
    squares = np.mean(np.log(p / (1 - p)) ** 2)
    assert first.pop("distilled") == pytest.approx(squares, abs=1e-6)
    assert list(first.values()) == pytest.approx([math.log(2)] * 3, abs=1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match="p=0.5: rDPO"):
        N.robust(Z, 0.5, numbers(0.5))
    with pytest.raises(ValueError, match="certain label"):
        N.distilled(Z, 0.5, numbers(1.0))
    with pytest.raises(ValueError, match="temperature=0"):
        N.SoftMinimum(0)
