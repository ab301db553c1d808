"""Exact optima against brute force, on tables small enough to enumerate by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from safealign_utils import optimum as o
from safealign_utils.grammar import build_trie

REF = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]))
R = np.array([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])
C = np.array([[-1.0, -0.5, 1.5], [0.5, -1.0, -0.2]])


def brute(score, beta):
    """log of pi_ref exp(score / beta) / Z, one response at a time."""
    out = np.zeros_like(REF)
    for x in range(2):
        z = sum(math.exp(REF[x, y] + score[x, y] / beta) for y in range(3))
        for y in range(3):
            out[x, y] = REF[x, y] + score[x, y] / beta - math.log(z)
    return out


def test_optima_by_brute_force():
    assert np.allclose(o.optimal(REF, R, beta=0.7), brute(R, 0.7), atol=1e-12)
    assert np.allclose(o.lagrangian_optimal(REF, R, C, lam=0.4, beta=0.7), brute(R - 0.4 * C, 0.7), atol=1e-12)
    safe = np.exp(o.safe_optimal(REF, R, C, beta=0.7))
    assert (safe[C > 0] == 0).all() and np.allclose(safe.sum(axis=1), 1)
    assert safe[0, 0] / safe[0, 1] == pytest.approx(0.5 / 0.3 * math.exp(1 / 0.7))


def test_the_optimum_maximises_its_objective():
    """A numerical optimiser over all policies finds nothing better than pi*."""
    beta = 0.7

    def loss(z):
        p = o.normalise(z.reshape(2, 3))
        return -(o.expect(p, R) - beta * o.kl(p, REF))

    found = minimize(loss, np.zeros(6), tol=1e-12)
    star = o.optimal(REF, R, beta=beta)
    assert -found.fun == pytest.approx(o.expect(star, R) - beta * o.kl(star, REF), abs=1e-9)
    assert np.allclose(np.exp(o.normalise(found.x.reshape(2, 3))), np.exp(star), atol=1e-4)


def test_expectations_and_divergences_by_hand():
    p, q = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert o.kl(p, q) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert o.total_variation(p, q) == pytest.approx(0.4)
    assert o.expect(p, np.array([[1.0, 3.0]])) == pytest.approx(2.0)
    with np.errstate(divide="ignore"):
        half = np.log(np.array([[1.0, 0.0]]))
    assert o.kl(half, p) == pytest.approx(math.log(2)) and o.kl(p, half) == np.inf


def test_dual_its_gradient_and_its_minimum():
    beta, limit, step = 0.7, -0.3, 1e-6
    for lam in (0.0, 0.4, 1.3):
        g = lambda x: o.dual(x, REF, R, C, beta=beta, cost_limit=limit)
        slope = (g(lam + step) - g(lam - step)) / (2 * step)
        assert o.dual_gradient(lam, REF, R, C, beta=beta, cost_limit=limit) == pytest.approx(slope, abs=1e-6)
    star = o.lambda_star(REF, R, C, beta=beta, cost_limit=limit)
    policy = o.lagrangian_optimal(REF, R, C, lam=star, beta=beta)
    primal = o.expect(policy, R) - beta * o.kl(policy, REF)
    assert o.expect(policy, C) == pytest.approx(limit, abs=1e-9)
    assert o.dual(star, REF, R, C, beta=beta, cost_limit=limit) == pytest.approx(primal, abs=1e-9)
    assert all(g(star) <= g(star + d) for d in (-0.1, -0.01, 0.01, 0.1))


def test_slack_and_infeasible_limits():
    assert o.lambda_star(REF, R, C, beta=0.7, cost_limit=5.0) == 0.0
    lowest = (C.min(axis=1)).mean()
    assert o.lowest_cost(C) == lowest
    with pytest.raises(ValueError, match=f"lowest attainable E\\[c\\] is {lowest:.6f}"):
        o.lambda_star(REF, R, C, beta=0.7, cost_limit=lowest)
    with pytest.raises(ValueError, match="beta=0"):
        o.optimal(REF, R, beta=0)
    with pytest.raises(ValueError, match="no safe response"):
        o.safe_optimal(REF, R, np.ones_like(C), beta=0.7)


def test_frontier_slope_and_gap():
    betas = np.geomspace(0.2, 5, 200)
    rows = o.reward_frontier(REF, R, betas)
    slope = np.gradient(rows[:, 1], rows[:, 2])
    assert np.allclose(slope[5:-5], betas[5:-5], rtol=0.01)
    assert o.frontier_gap(o.optimal(REF, R, beta=0.9), REF, R) == pytest.approx(0, abs=1e-9)
    assert o.frontier_gap(REF, REF, R) == pytest.approx(0, abs=1e-5)
    worse = o.optimal(REF, -R, beta=0.9)
    assert o.frontier_gap(worse, REF, R) > 0.1
    greedy = o.normalise(np.where(R == R.max(axis=1, keepdims=True), 0.0, -50.0))
    assert o.frontier_gap(greedy, REF, R) == pytest.approx(0, abs=1e-6)


def test_cost_frontier_is_a_tradeoff():
    rows = o.cost_frontier(REF, R, C, np.linspace(0, 3, 20), beta=0.7)
    assert (np.diff(rows[:, 1]) <= 1e-12).all() and (np.diff(rows[:, 2]) <= 1e-12).all()


def test_token_advantages_by_hand():
    texts = [["a", "b", "."], ["a", "c", "."], ["d", "."]]
    paths, _ = build_trie(texts)
    p, value = np.array([0.2, 0.3, 0.5]), np.array([10.0, 0.0, 2.0])
    out = o.token_advantages(paths, np.log(p), value)
    v0, va = 0.2 * 10 + 0.5 * 2, (0.2 * 10) / 0.5
    assert out[0].tolist() == pytest.approx([va - v0, 10 - va, 0.0])
    assert out[1].tolist() == pytest.approx([va - v0, 0 - va, 0.0])
    assert out[2].tolist() == pytest.approx([2 - v0, 0.0, 0.0])


def test_vectorised_over_prompts():
    """Each function on P prompts is the mean of the function on one."""
    for f in (lambda s: o.kl(o.optimal(REF[s], R[s], beta=0.5), REF[s]), lambda s: o.expect(REF[s], R[s])):
        assert f(slice(None)) == pytest.approx(np.mean([f(slice(i, i + 1)) for i in range(2)]), abs=1e-12)


def test_population_labels_make_pi_star_the_minimiser_of_dpo():
    """With Bradley-Terry probabilities over all pairs, the tabular DPO loss is least at pi* (2305.18290)."""
    beta, ref, r = 0.6, REF[0], R[0]

    def loss(z):
        h = (z - ref)[:, None] - (z - ref)[None, :]
        total = 0.0
        for i, j in itertools.permutations(range(3), 2):
            p = 1 / (1 + math.exp(r[j] - r[i]))
            total += p * np.logaddexp(0, -beta * h[i, j])
        return total

    z = minimize(loss, np.zeros(3), tol=1e-14).x
    assert np.allclose(o.normalise(z[None]), o.optimal(ref[None], r[None], beta=beta), atol=1e-5)
