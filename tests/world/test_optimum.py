"""Exact optima against brute force, on tables small enough to enumerate by hand."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from scipy.optimize import minimize

from safealign_utils.methods import baselines as b
from safealign_utils.world import optimum as o
from safealign_utils.world.grammar import build_trie

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
    assert np.allclose(
        o.lagrangian_optimal(REF, R, C, lam=0.4, beta=0.7), brute(R - 0.4 * C, 0.7), atol=1e-12
    )
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

        def g(x):
            return o.dual(x, REF, R, C, beta=beta, cost_limit=limit)

        slope = (g(lam + step) - g(lam - step)) / (2 * step)
        assert o.dual_gradient(lam, REF, R, C, beta=beta, cost_limit=limit) == pytest.approx(
            slope, abs=1e-6
        )
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
    for f in (
        lambda s: o.kl(o.optimal(REF[s], R[s], beta=0.5), REF[s]),
        lambda s: o.expect(REF[s], R[s]),
    ):
        assert f(slice(None)) == pytest.approx(
            np.mean([f(slice(i, i + 1)) for i in range(2)]), abs=1e-12
        )


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


# ---------------------------------------------------------------- high precision, and the edges


def random_problem(seed, *, scale=1.0, dead=0.3):
    """(logp_ref with responses that never occur, reward, cost), 3 prompts and 5 responses."""
    g = np.random.default_rng(seed)
    logp, reward, cost = (
        g.normal(size=(3, 5)) * 2,
        g.normal(size=(3, 5)) * scale,
        g.normal(size=(3, 5)),
    )
    logp[:, 1:][g.random((3, 4)) < dead] = -np.inf
    return o.normalise(logp), reward, cost


def precise(logp, score, beta):
    """pi_ref exp(score / beta) / Z at 60 digits: a list of rows."""
    rows = []
    for ref, values in zip(logp.tolist(), score):
        weights = [
            mpmath.exp(mpmath.mpf(a) + v / mpmath.mpf(beta)) if a > -math.inf else 0
            for a, v in zip(ref, values)
        ]
        total = mpmath.fsum(weights)
        rows.append([w / total for w in weights])
    return rows


def mean_cost(lam, logp, reward, cost, beta):
    """E[c] under pi*_lambda at 60 digits."""
    reward, cost = (
        [[mpmath.mpf(v) for v in row] for row in table.tolist()] for table in (reward, cost)
    )
    score = [[r - lam * c for r, c in zip(*rows)] for rows in zip(reward, cost)]
    best = precise(logp, score, beta)
    return mpmath.fsum(p * c for row in zip(best, cost) for p, c in zip(*row)) / len(cost)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("beta", [1e-3, 0.5, 50.0])
def test_the_multiplier_against_sixty_digits(seed, beta):
    logp, reward, cost = random_problem(seed)
    lowest = o.lowest_cost(cost, logp)
    slack = o.expect(o.optimal(logp, reward, beta=beta), cost)
    limit = lowest + 0.4 * (slack - lowest)
    if slack - lowest < 1e-3:
        return
    found = o.lambda_star(logp, reward, cost, beta=beta, cost_limit=limit)
    with mpmath.workdps(60):

        def root(lam):
            return mean_cost(lam, logp, reward, cost, beta) - mpmath.mpf(limit)

        exact = mpmath.findroot(root, (found * 0.99, found * 1.01), solver="anderson", tol=1e-40)
        assert abs(found - exact) <= 1e-11 * max(1, abs(exact))
    assert b.mocan_lambda(logp, reward, cost, beta=beta, cost_limit=limit) == found


@pytest.mark.parametrize("seed", range(4))
def test_optima_against_sixty_digits(seed):
    logp, reward, _ = random_problem(seed)
    for beta in (1e-12, 1e-3, 1.0, 1e9):
        with mpmath.workdps(60):
            exact = precise(logp, [[mpmath.mpf(v) for v in row] for row in reward.tolist()], beta)
            exact = np.array([[float(p) for p in row] for row in exact])
        assert np.abs(np.exp(o.optimal(logp, reward, beta=beta)) - exact).max() < 1e-13


def test_the_multiplier_does_not_depend_on_rounding_of_its_arguments():
    """One unit in the last place of the reference moves lambda* by rounding, not by half the digits."""
    g, limit = np.random.default_rng(0), -0.3
    for find in (o.lambda_star, b.mocan_lambda):
        values = [
            find(
                np.nextafter(REF, np.where(g.random(REF.shape) < 0.5, 0, -9)),
                R,
                C,
                beta=0.7,
                cost_limit=limit,
            )
            for _ in range(20)
        ]
        assert np.ptp(values) < 1e-13


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e6, 1e100])
@pytest.mark.parametrize("seed", range(3))
def test_the_frontier_gap_scales_with_the_reward(seed, scale):
    logp, reward, _ = random_problem(seed)
    policy = o.normalise(
        np.where(
            np.isneginf(logp), -np.inf, np.random.default_rng(seed + 9).normal(size=logp.shape)
        )
    )
    gap = o.frontier_gap(policy, logp, reward)
    assert o.frontier_gap(policy, logp, scale * reward) == pytest.approx(scale * gap, rel=1e-9)
    assert o.frontier_gap(policy, logp, reward + 7.0) == pytest.approx(gap, abs=1e-9)
    on_it = o.optimal(logp, scale * reward, beta=0.3 * scale)
    assert abs(o.frontier_gap(on_it, logp, scale * reward)) < 1e-9 * scale


def test_the_ends_of_the_frontier():
    logp, reward, _ = random_problem(1)
    assert abs(o.frontier_gap(logp, logp, reward)) < 1e-5
    assert o.frontier_gap(logp, logp, np.full_like(reward, 3.0)) == pytest.approx(0, abs=1e-12)
    possible = np.where(np.isneginf(logp), -np.inf, reward)
    greedy = np.where(possible == possible.max(axis=1, keepdims=True), 0.0, -np.inf)
    assert o.frontier_gap(greedy, logp, reward) == pytest.approx(0, abs=1e-9)
    uniform = np.full(
        logp.shape, -math.log(5)
    )  # gives what the reference never does: any response is open
    expected = reward.max(axis=1).mean() - o.expect(uniform, reward)
    assert o.kl(uniform, logp) == np.inf and o.frontier_gap(uniform, logp, reward) == pytest.approx(
        expected
    )


def test_responses_that_never_occur():
    logp = np.array([[-np.inf, math.log(0.4), math.log(0.6)], [0.0, -np.inf, -np.inf]])
    reward, cost = (
        np.array([[9.0, 1.0, 0.0], [1.0, 9.0, 9.0]]),
        np.array([[-5.0, 1.0, -1.0], [-1.0, -9.0, 1.0]]),
    )
    assert o.lowest_cost(cost) == -7 and o.lowest_cost(cost, logp) == -1
    with pytest.raises(ValueError, match="lowest attainable E\\[c\\] is -1.000000"):
        o.lambda_star(logp, reward, cost, beta=0.5, cost_limit=-2.0)
    lam = o.lambda_star(logp, reward, cost, beta=0.5, cost_limit=-0.9)
    best = o.lagrangian_optimal(logp, reward, cost, lam=lam, beta=0.5)
    assert (
        o.expect(best, cost) == pytest.approx(-0.9, abs=1e-12)
        and (best[np.isneginf(logp)] == -np.inf).all()
    )
    assert o.expect(best, np.where(np.isneginf(logp), np.inf, 1.0)) == pytest.approx(1)
    assert o.kl(best, logp) < np.inf and o.total_variation(best, logp) <= 1
    report = o.kkt(best, lam, logp, reward, cost, beta=0.5, cost_limit=-0.9)
    assert abs(report["gap"]) < 1e-12
    assert (o.safe_optimal(logp, reward, cost, beta=0.5)[0] == [-np.inf, -np.inf, 0]).all()
    with pytest.raises(
        ValueError, match="prompt 0 has a safe response, but none that the reference gives"
    ):
        o.safe_optimal(logp, reward, np.array([[-1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]]), beta=0.5)


@pytest.mark.parametrize("beta, steep", [(1e-200, 1.0), (1e-9, 1.0), (0.5, 1e-9), (0.5, 1e9)])
def test_the_multiplier_at_any_scale(beta, steep):
    limit = steep * -0.3
    lam = o.lambda_star(REF, R, steep * C, beta=beta, cost_limit=limit)
    cost = o.expect(o.lagrangian_optimal(REF, R, steep * C, lam=lam, beta=beta), steep * C)
    assert (
        cost == pytest.approx(limit, rel=1e-6) or beta < 1e-16
    )  # there the cost jumps from response to response
    assert 0 < lam < np.inf


def test_limits_that_every_policy_meets():
    flat = np.zeros_like(C)
    assert (
        o.lambda_star(REF, R, flat, beta=0.5) == 0 and b.mocan_lambda(REF, R, flat, beta=0.5) == 0
    )
    one = np.zeros((2, 1))
    assert o.lambda_star(one, one, one - 1, beta=0.5) == 0 and o.frontier_gap(one, one, one) == 0
    with pytest.raises(ValueError, match="cost_limit=nan"):
        o.lambda_star(REF, R, C, beta=0.5, cost_limit=math.nan)


def spoiled(table, value):
    out = np.array(table, dtype=float)
    out[1, 2] = value
    return out


NAN, INF = math.nan, math.inf
REFUSED = [
    (lambda: o.optimal(spoiled(REF, NAN), R, beta=1), "logp_ref: nan at prompt 1, response 2"),
    (lambda: o.optimal(REF, spoiled(R, NAN), beta=1), "reward: nan at prompt 1, response 2"),
    (lambda: o.optimal(REF, spoiled(R, INF), beta=1), "reward: inf at prompt 1, response 2"),
    (
        lambda: o.optimal(REF, R[:, :2], beta=1),
        r"reward: shape \(2, 2\); the policy has 2 prompts and 3 responses",
    ),
    (lambda: o.optimal(REF[0], R[0], beta=1), r"logp_ref: shape \(3,\)"),
    (lambda: o.optimal(REF, R, beta=NAN), "beta=nan"),
    (lambda: o.optimal(REF, R, beta=INF), "beta=inf"),
    (lambda: o.optimal(REF - 1, R, beta=1), "logp_ref: the probabilities of prompt 0 sum to 0.367"),
    (lambda: o.lambda_star(REF, R, spoiled(C, NAN), beta=1), "cost: nan at prompt 1, response 2"),
    (lambda: o.safe_optimal(REF, R, spoiled(C, NAN), beta=1), "cost: nan at prompt 1, response 2"),
    (lambda: o.lagrangian_optimal(REF, R, C, lam=NAN, beta=1), "lam=nan"),
    (lambda: o.lagrangian_optimal(REF, R, C, lam=INF, beta=1), "lam=inf"),
    (lambda: o.expect(REF, spoiled(R, NAN)), "values: nan at prompt 1"),
    (lambda: o.expect(REF, R.T), "values: shape"),
    (lambda: o.kl(REF, REF[:1]), "logq: shape"),
    (lambda: o.total_variation(REF, spoiled(REF, NAN)), "logq: nan"),
    (lambda: o.dual(0.1, REF, spoiled(R, NAN), C, beta=1), "reward: nan"),
    (lambda: o.lowest_cost(spoiled(C, NAN)), "cost: nan"),
    (lambda: o.frontier_gap(REF, REF, spoiled(R, NAN)), "reward: nan"),
    (lambda: o.kl(REF + 0.1, REF), "use optimum.normalise"),
    (
        lambda: o.frontier_gap(REF, o.optimal(REF, R, beta=1), np.array([[1e308, -1e308, 0]] * 2)),
        "its spread overflows",
    ),
    (
        lambda: o.normalise(np.array([[0.0, 0.0], [-INF, -INF]])),
        "log-weights of prompt 1 sum to -inf",
    ),
]


@pytest.mark.parametrize("call, reason", REFUSED)
def test_tables_that_cannot_be_used_are_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def test_token_tables_where_the_policy_never_gets():
    texts = [["a", "b", "."], ["a", "c", "."], ["d", "."]]
    paths, _ = build_trie(texts)
    logp = np.array([-np.inf, -np.inf, 0.0])
    assert np.isfinite(o.token_advantages(paths, logp, np.array([1.0, 2.0, 3.0]))).all()
    assert o.conditional_logps(paths, logp).sum(axis=1).tolist() == [-np.inf, -np.inf, 0]


# ---------------------------------------------------------------- the frontier at equal KL and P(unsafe)
def small_problem(seed, prompts=3, responses=6):
    g = np.random.default_rng(seed)
    ref = o.normalise(g.normal(size=(prompts, responses)))
    return g, ref, g.normal(size=(prompts, responses)), 1.0 * (g.random((prompts, responses)) < 0.4)


@pytest.mark.parametrize(
    "lam, beta", [(0.0, 0.5), (1.0, 0.5), (3.0, 0.2), (-2.0, 1.0), (30.0, 0.5)]
)
def test_policies_that_pay_a_price_for_unsafe_answers_miss_nothing(lam, beta):
    _, ref, reward, unsafe = small_problem(0)
    policy = o.lagrangian_optimal(ref, reward, unsafe, lam=lam, beta=beta)
    assert o.matched_gap(policy, ref, reward, unsafe) == pytest.approx(0, abs=1e-6)
    if lam:
        assert o.frontier_gap(policy, ref, reward) > 0.01, "unmatched it looks as if it did"


def test_the_safe_optimum_misses_nothing():
    _, ref, reward, unsafe = small_problem(1)
    safe = o.safe_optimal(ref, reward, 2 * unsafe - 1, beta=0.5)
    assert o.matched_gap(safe, ref, reward, unsafe) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_matched_gap_is_that_of_a_general_optimiser(seed):
    """Of a random policy, against SLSQP over all policies with its KL and its share of unsafe."""
    g, ref, reward, unsafe = small_problem(seed)
    policy = o.normalise(ref + 0.5 * g.normal(size=ref.shape))
    own, mean = o.kl(policy, ref), o.expect(policy, unsafe)
    of = lambda z: o.normalise(z.reshape(ref.shape))
    found = minimize(
        lambda z: -o.expect(of(z), reward),
        ref.ravel(),
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-10},
        constraints=[
            {"type": "ineq", "fun": lambda z: own - o.kl(of(z), ref)},
            {"type": "eq", "fun": lambda z: mean - o.expect(of(z), unsafe)},
        ],
    )
    gap = o.matched_gap(policy, ref, reward, unsafe)
    assert gap == pytest.approx(-found.fun - o.expect(policy, reward), abs=1e-4)
    assert -1e-9 < gap <= o.frontier_gap(policy, ref, reward) + 1e-9, (
        "matched on more, never larger"
    )


def test_the_matched_gap_has_the_unit_of_the_reward():
    g, ref, reward, unsafe = small_problem(5)
    policy = o.normalise(ref + 0.5 * g.normal(size=ref.shape))
    gap = o.matched_gap(policy, ref, reward, unsafe)
    assert gap > 0.01
    assert o.matched_gap(policy, ref, 3 * reward, unsafe) == pytest.approx(3 * gap, rel=1e-5)
    assert o.matched_gap(policy, ref, reward + 7, unsafe) == pytest.approx(gap, abs=1e-6)
    assert o.matched_gap(policy, ref, reward, 5 * unsafe - 1) == pytest.approx(gap, abs=1e-6)


# ---------------------------------------------------------------- the edges of what is allowed
def test_a_cost_of_zero_is_safe():
    """It is c > 0 that is unsafe: for pi*_c, for what is refused, and for the share of unsafe."""
    cost = np.array([[0.0, 1.0, 2.0], [0.0, 3.0, -1.0]])
    safe = np.exp(o.safe_optimal(REF, R, cost, beta=0.7))
    assert safe[0].tolist() == [1, 0, 0] and safe[1, 0] > 0 and safe[1, 1] == 0
    assert o.cost_frontier(REF, R, cost, [0.0], beta=0.7)[0, 3] == pytest.approx(
        o.expect(o.optimal(REF, R, beta=0.7), np.array([[0, 1, 1], [0, 1, 0]]))
    )
    never = np.array([[-INF, math.log(0.4), math.log(0.6)], [math.log(0.5), -INF, math.log(0.5)]])
    with pytest.raises(ValueError, match="prompt 0 has a safe response, but none that the ref"):
        o.safe_optimal(never, R, cost, beta=0.7)
    with pytest.raises(ValueError, match="prompt 1 has no safe response"):
        o.safe_optimal(REF, R, np.where([[True], [False]], cost, 1.0), beta=0.7)


def test_a_limit_is_zero_where_none_is_given():
    """And g, its slope, the multiplier and the conditions at it then belong together."""
    lam, given = 0.8, dict(beta=0.7, cost_limit=0.0)
    assert o.dual(lam, REF, R, C, beta=0.7) == o.dual(lam, REF, R, C, **given)
    assert o.dual_gradient(lam, REF, R, C, beta=0.7) == o.dual_gradient(lam, REF, R, C, **given)
    steep = C + 0.2  # the reference's own optimum oversteps 0
    star = o.lambda_star(REF, R, steep, beta=0.7)
    assert star > 0.05 and star == o.lambda_star(REF, R, steep, **given)
    policy = o.lagrangian_optimal(REF, R, steep, lam=0.3, beta=0.7)
    report = o.kkt(policy, lam, REF, R, steep, beta=0.7)
    assert report == o.kkt(policy, lam, REF, R, steep, **given)
    best = o.lagrangian_optimal(REF, R, steep, lam=lam, beta=0.7)
    assert report["lam"] == lam and report["slack"] == pytest.approx(-o.expect(policy, steep))
    assert report["complementary"] == pytest.approx(lam * report["slack"])
    assert report["suboptimality"] == pytest.approx(0.7 * o.kl(policy, best)) and o.kl(policy, best)
    assert report["gap"] == pytest.approx(report["suboptimality"] + report["complementary"])


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_how_near_to_the_lowest_cost_a_limit_may_lie(scale):
    o.check_limit(-1.0 + 1.5e-6 * scale, -1.0, scale)
    o.check_limit(-5.0, None)
    for above in (1e-6, 0.5e-6, 0.0, -1.0):
        with pytest.raises(ValueError, match="lowest attainable"):
            o.check_limit(-1.0 + above * scale, -1.0, scale)
    with pytest.raises(ValueError, match="lowest attainable"):
        o.check_limit(0.99e-6, 0.0)
    o.check_limit(1.01e-6, 0.0)


def test_a_small_spread_of_costs_is_measured_in_its_own_unit():
    """A millionth of a spread of 1e-3 is told from its lowest cost; of a spread of 1e3 none is."""
    for spread, above, allowed in ((1e-3, 1e-8, True), (1e3, 0.9e-6, False), (1e3, 2e-6, True)):
        cost = spread * (C - C.min()) / np.ptp(C)
        limit = o.lowest_cost(cost, REF) + above
        if allowed:
            assert o.lambda_star(REF, R, cost, beta=0.7, cost_limit=limit) > 0
        else:
            with pytest.raises(ValueError, match="lowest attainable"):
                o.lambda_star(REF, R, cost, beta=0.7, cost_limit=limit)


def test_how_well_a_policy_must_be_normalised():
    """Within 1e-6, or 1e-3 where it is float32, whose sums are no better."""
    for off, dtype, allowed in (
        (0.9e-6, np.float64, True),
        (1.5e-6, np.float64, False),
        (0.9e-3, np.float32, True),
        (1.5e-3, np.float32, False),
    ):
        policy = (REF + math.log1p(off)).astype(dtype)
        if allowed:
            assert o.expect(policy, R) == pytest.approx(o.expect(REF, R), rel=2e-3)
        else:
            with pytest.raises(ValueError, match="probabilities of prompt 0 sum to"):
                o.expect(policy, R)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 2, 3)])
def test_tables_without_responses_are_refused(shape):
    with pytest.raises(ValueError, match="give log-probabilities"):
        o.kl(np.zeros(shape), np.zeros(shape))
    with pytest.raises(ValueError, match="give numbers"):
        o.lowest_cost(np.zeros(shape[1:] if len(shape) == 2 else shape))


def test_numbers_of_the_responses_serve_every_prompt():
    values = [1.0, 2.0, 4.0]
    assert o.expect(REF, values) == pytest.approx(o.expect(REF, [values, values]))
    assert o.lowest_cost([[3, 1], [2, 5]]) == 1.5


def test_nothing_is_warned_of():
    """Small beta, responses that never occur and slopes that overflow are no surprise."""
    logp, reward, cost = random_problem(3)
    with np.errstate(all="raise", under="ignore"):
        assert o.optimal(logp, reward, beta=5e-324).max() <= 1e-12
        assert o.kl(o.optimal(logp, reward, beta=0.5), logp) > 0
        for far in (-1e308, 1e308):
            with pytest.raises(ValueError, match="overflows; rescale reward, cost"):
                o.lagrangian_optimal(logp, reward, 1e3 * cost, lam=far, beta=0.5)
        with pytest.raises(ValueError, match="its spread overflows"):
            o.frontier_gap(REF, o.optimal(REF, R, beta=1), np.array([[1e308, -1e308, 0]] * 2))


def test_what_the_tokens_of_a_trie_are_worth_by_hand():
    """The first node of the trie, a forced token, a prefix that is never taken: all by hand."""
    paths, _ = build_trie([["a", "b", "."], ["a", "c", "."], ["d", "e"]])
    log, p = np.log, np.array([0.2, 0.3, 0.5])
    assert o.conditional_logps(paths, log(p)) == pytest.approx(
        np.array([[log(0.5), log(0.4), 0], [log(0.5), log(0.6), 0], [log(0.5), 0, 0]])
    )
    with np.errstate(all="raise"):
        never = np.array([-np.inf, -np.inf, 0.0])
        worth = o.token_advantages(paths, never, np.array([10.0, 0.0, 2.0]))
        chances = o.conditional_logps(paths, never)
    assert worth.tolist() == [[0, 0, 0]] * 3
    assert chances.tolist() == [[-np.inf, 0, 0], [-np.inf, 0, 0], [0, 0, 0]]
    some = o.token_advantages(paths, np.array([-np.inf, log(0.5), log(0.5)]), [10.0, 0.0, 2.0])
    assert some[0].tolist() == [-1.0, 0.0, 0.0] and some[1].tolist() == [-1.0, 0.0, 0.0]
