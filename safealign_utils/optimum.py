"""What is known exactly: optimal policies, the dual, frontiers and token advantages.

A policy is an array `logp` [P, R]: the log-probability (nats) of each of the R responses to each of P
prompts, normalised over R. `reward` and `cost` have the same shape; cost > 0 is unsafe. Expectations and
divergences are means over prompts. Everything here is numpy in float64 and knows no network.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp


def normalise(logp):
    """Renormalise log-weights [P, R] over the responses of each prompt."""
    return logp - logsumexp(logp, axis=1, keepdims=True)


# ---------------------------------------------------------------- optimal policies


def optimal(logp_ref, reward, *, beta):
    """pi* = pi_ref exp(r / beta) / Z, the optimum of E[r] - beta KL(pi || pi_ref) (arXiv 2305.18290, Eq. 4)."""
    if not beta > 0:
        raise ValueError(f"beta={beta}: the KL strength must be positive")
    return normalise(logp_ref + reward / beta)


def safe_optimal(logp_ref, reward, cost, *, beta):
    """pi*_c: pi* with every unsafe response removed (arXiv 2505.20065, Eq. 8-9). Unsafe mass is exactly 0."""
    if not (cost <= 0).any(axis=1).all():
        raise ValueError("cost: a prompt has no safe response, so pi*_c does not exist")
    with np.errstate(divide="ignore"):
        return optimal(logp_ref, np.where(cost <= 0, reward, -np.inf), beta=beta)


def lagrangian_optimal(logp_ref, reward, cost, *, lam, beta):
    """pi*_lambda = pi_ref exp((r - lambda c) / beta) / Z (arXiv 2403.02475)."""
    return optimal(logp_ref, reward - lam * cost, beta=beta)


# ---------------------------------------------------------------- expectations and divergences


def expect(logp, values):
    """E[values] under the policy, mean over prompts. Values [P, R] or [R]."""
    return float((np.exp(logp) * values).sum(axis=1).mean())


def kl(logp, logq):
    """KL(p || q) in nats, mean over prompts; responses with p = 0 count 0, q = 0 < p gives inf."""
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(logp), 0.0, np.exp(logp) * (logp - logq))
    return float(terms.sum(axis=1).mean())


def total_variation(logp, logq):
    """Total variation distance in [0, 1], mean over prompts."""
    return float(0.5 * np.abs(np.exp(logp) - np.exp(logq)).sum(axis=1).mean())


# ---------------------------------------------------------------- the dual of the constrained problem


def dual(lam, logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """g(lambda) = beta E_x log sum_y pi_ref exp((r - lambda c) / beta) + lambda cost_limit; convex in lambda."""
    log_z = logsumexp(logp_ref + (reward - lam * cost) / beta, axis=1)
    return float(beta * log_z.mean() + lam * cost_limit)


def dual_gradient(lam, logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """dg/dlambda = cost_limit - E[c] under pi*_lambda; the curvature is Var(c) / beta >= 0."""
    return cost_limit - expect(lagrangian_optimal(logp_ref, reward, cost, lam=lam, beta=beta), cost)


def lowest_cost(cost):
    """The lowest attainable E[c]: the mean over prompts of the cheapest response."""
    return float(cost.min(axis=1).mean())


def check_limit(cost_limit, lowest):
    """Refuse a limit that no policy of full support can meet; `lowest` None: not known. Raises ValueError."""
    if not np.isfinite(cost_limit):
        raise ValueError(f"cost_limit={cost_limit}: the limit on E[c] is a finite number")
    if lowest is not None and cost_limit <= lowest + 1e-6:
        raise ValueError(
            f"cost_limit={cost_limit:.9g}: the lowest attainable E[c] is {lowest:.6f}; choose a higher limit"
        )


def lambda_star(logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """The multiplier lambda* >= 0 at which E[c] meets the limit; 0 where the limit is slack.

    Raises ValueError where no policy of full support can meet the limit.
    """
    check_limit(cost_limit, lowest_cost(cost))
    slope = lambda lam: dual_gradient(lam, logp_ref, reward, cost, beta=beta, cost_limit=cost_limit)
    if slope(0.0) >= 0:
        return 0.0
    high = 1.0
    while slope(high) < 0:
        high *= 2
    return float(brentq(slope, 0.0, high, xtol=1e-14, rtol=1e-14))


def kkt(logp, lam, logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """How far a policy and a multiplier are from solving the constrained problem: a dict.

    `slack` = cost_limit - E[c] (>= 0: feasible), `lam` (>= 0), `complementary` = lam slack (0 at the
    solution), `suboptimality` = beta KL(policy || pi*_lam), `gap` = g(lam) - (E[r] - beta KL): the duality
    gap, always suboptimality + complementary.
    """
    slack = cost_limit - expect(logp, cost)
    primal = expect(logp, reward) - beta * kl(logp, logp_ref)
    best = lagrangian_optimal(logp_ref, reward, cost, lam=lam, beta=beta)
    return {
        "slack": slack, "lam": float(lam), "complementary": lam * slack, "suboptimality": beta * kl(logp, best),
        "gap": dual(lam, logp_ref, reward, cost, beta=beta, cost_limit=cost_limit) - primal,
    }  # fmt: skip


# ---------------------------------------------------------------- frontiers


def reward_frontier(logp_ref, reward, betas):
    """The exact reward-KL frontier: rows (beta, E[r], KL to the reference), dE[r]/dKL = beta along it."""
    policies = [optimal(logp_ref, reward, beta=b) for b in betas]
    return np.array([(b, expect(p, reward), kl(p, logp_ref)) for b, p in zip(betas, policies)])


def cost_frontier(logp_ref, reward, cost, lams, *, beta):
    """The exact reward-cost frontier at one beta: rows (lambda, E[r], E[c], P(unsafe))."""
    policies = [lagrangian_optimal(logp_ref, reward, cost, lam=lam, beta=beta) for lam in lams]
    return np.array([(x, expect(p, reward), expect(p, cost), expect(p, cost > 0)) for x, p in zip(lams, policies)])


def frontier_gap(logp, logp_ref, reward):
    """E[r] of the frontier at the policy's own KL, minus the policy's E[r]: >= 0, and 0 on the frontier."""
    own, beta_low, beta_high = kl(logp, logp_ref), 1e-3, 1e6
    surplus = lambda log_beta: kl(optimal(logp_ref, reward, beta=np.exp(log_beta)), logp_ref) - own
    if surplus(np.log(beta_low)) <= 0:  # beyond the frontier's end: the best response of each prompt
        best = float(reward.max(axis=1).mean())
    elif surplus(np.log(beta_high)) >= 0:
        best = expect(logp_ref, reward)
    else:
        beta = np.exp(brentq(surplus, np.log(beta_low), np.log(beta_high), xtol=1e-12))
        best = expect(optimal(logp_ref, reward, beta=beta), reward)
    return best - expect(logp, reward)


# ---------------------------------------------------------------- tokens


def token_advantages(paths, logp, values):
    """Advantage of every token on the response trie: E[value | prefix and token] - E[value | prefix].

    `paths` [R, T] numbers the trie's nodes along each response, -1 behind its end; `logp` and `values` [R]
    belong to one prompt. Returns [R, T], zero behind the end: along a response it sums to its value minus
    the mean value. Where a prefix forces the next token the advantage is 0.
    """
    weight = np.exp(logp)
    mass, before_mass = _along(paths, weight)
    total, before_total = _along(paths, weight * values)
    return np.where(paths >= 0, total / mass - before_total / before_mass, 0.0)


def token_logps(paths, logp):
    """log p(token | prefix) of every token on the trie, nats: [R, T], zero behind the end; arguments as above."""
    mass, before = _along(paths, np.exp(logp))
    return np.where(paths >= 0, np.log(mass / before), 0.0)


def _along(paths, weight):
    """Summed `weight` [R] of all responses through each token's node and through the prefix before it: two [R, T]."""
    real = paths >= 0
    node = np.zeros(int(paths.max()) + 1)
    np.add.at(node, paths[real], np.broadcast_to(weight[:, None], paths.shape)[real])
    here = np.where(real, node[paths], 1.0)
    return here, np.concatenate([np.full((len(paths), 1), weight.sum()), here[:, :-1]], axis=1)
