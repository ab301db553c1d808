"""What is known exactly: optimal policies, the dual, frontiers and token advantages.

A policy is an array `logp` [P, R]: the log-probability (nats) of each of the R responses to each of
P prompts, normalised over R; -inf is a response that never occurs. `reward` and `cost` have the
same shape; cost > 0 is unsafe. Expectations and divergences are means over prompts. Everything here
is numpy in float64 and knows no network. ValueError is raised for tables that do not fit one
another, NaN, infinite rewards and costs, and policies that are not normalised.
"""

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import logsumexp

LARGEST = 1e150  # a multiplier beyond it would overflow
# beta over the spread of the rewards: there the reference, here the best responses alone
FLATTEST, STEEPEST = 1e6, 1e-15
TIGHT = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 2000}  # of a smooth, convex bound


# ---------------------------------------------------------------- optimal policies
def optimal(logp_ref, reward, *, beta):
    """pi* = pi_ref exp(r / beta) / Z, where E[r] - beta KL(pi || pi_ref) is largest.

    arXiv 2305.18290, Eq. 4.
    """
    logp_ref, reward = _problem(beta, logp_ref, reward=reward)
    return _tilted(logp_ref, reward, beta)[0]


def safe_optimal(logp_ref, reward, cost, *, beta):
    """pi*_c: pi* without any unsafe response, whose mass is exactly 0 (arXiv 2505.20065, Eq. 8-9).

    Raises ValueError where the reference gives no safe response of a prompt any probability.
    """
    logp_ref, reward, cost = _problem(beta, logp_ref, reward=reward, cost=cost)
    for (x,) in np.argwhere(~((cost <= 0) & ~np.isneginf(logp_ref)).any(axis=1))[:1]:
        why = "has a safe response, but none that the reference gives any probability"
        why = why if (cost[x] <= 0).any() else "has no safe response"
        raise ValueError(f"cost: prompt {x} {why}, so pi*_c does not exist; leave the prompt out")
    return _tilted(logp_ref, np.where(cost <= 0, reward, -np.inf), beta)[0]


def lagrangian_optimal(logp_ref, reward, cost, *, lam, beta):
    """pi*_lambda = pi_ref exp((r - lambda c) / beta) / Z (arXiv 2403.02475)."""
    logp_ref, reward, cost = _problem(beta, logp_ref, reward=reward, cost=cost)
    return _tilted(logp_ref, _score(reward, cost, lam), beta)[0]


def _tilted(logp_ref, score, beta):
    """pi_ref exp(score / beta) / Z of checked tables, beta log Z [P]; -inf removes a response."""
    score = np.where(np.isneginf(logp_ref), -np.inf, score)
    top = score.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # a small beta ends at the best responses
        logits = logp_ref + (score - top) / beta
    log_z = logsumexp(logits, axis=1, keepdims=True)
    return logits - log_z, (top + beta * log_z)[:, 0]


def normalise(logp):
    """Log-weights [P, R], renormalised over the responses of each prompt.

    Raises ValueError where nothing has weight.
    """
    total = logsumexp(logp, axis=1, keepdims=True)
    for x, _ in np.argwhere(~np.isfinite(total))[:1]:
        raise ValueError(
            f"logp: the log-weights of prompt {x} sum to {total[x, 0]}; leave the prompt out"
        )
    return logp - total


# ---------------------------------------------------------------- expectations and divergences
def expect(logp, values):
    """E[values] under the policy. Values [P, R] or [R]; what never occurs counts nothing."""
    logp = _policy(logp)
    return _mean(logp, _values(values, logp.shape, "values", finite=False))


def _mean(logp, values):
    p = np.exp(logp)
    return float(np.multiply(p, values, where=p > 0, out=np.zeros_like(p)).sum(axis=1).mean())


def kl(logp, logq):
    """KL(p || q) in nats; responses with p = 0 count 0, q = 0 < p gives inf."""
    return _kl(*_two_policies(logp, logq))


def _kl(logp, logq):
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(logp), 0.0, np.exp(logp) * (logp - logq))
    return float(terms.sum(axis=1).mean())


def total_variation(logp, logq):
    """Total variation distance in [0, 1]."""
    p, q = (np.exp(table) for table in _two_policies(logp, logq))
    return float(0.5 * np.abs(p - q).sum(axis=1).mean())


# ---------------------------------------------------------------- the constrained problem
def dual(lam, logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """g(lambda) = beta E_x log E_ref exp((r - lambda c) / beta) + lambda cost_limit, convex."""
    logp_ref, reward, cost = _problem(beta, logp_ref, reward=reward, cost=cost)
    return float(_tilted(logp_ref, _score(reward, cost, lam), beta)[1].mean() + lam * cost_limit)


def dual_gradient(lam, logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """dg/dlambda = cost_limit - E[c] under pi*_lambda; the curvature is Var(c) / beta >= 0."""
    best = lagrangian_optimal(logp_ref, reward, cost, lam=lam, beta=beta)
    return cost_limit - _mean(best, np.asarray(cost, dtype=float))


def lowest_cost(cost, logp_ref=None):
    """The lowest attainable E[c]: the cheapest response of each prompt (that `logp_ref` gives)."""
    cost = np.asarray(cost, dtype=float)
    if cost.ndim != 2:
        raise ValueError(f"cost: shape {cost.shape}; give numbers [prompts, responses]")
    cost = _values(cost, cost.shape, "cost")
    never = False if logp_ref is None else np.isneginf(_policy(logp_ref, "logp_ref"))
    return float(np.where(never, np.inf, cost).min(axis=1).mean())


def check_limit(cost_limit, lowest, scale=1.0):
    """Refuse a limit that no policy of full support can meet; `lowest` None: not known.

    A limit within 1e-6 of the lowest cost, in units of `scale`, is refused too: its multiplier has
    no digits. Raises ValueError.
    """
    if not np.isfinite(cost_limit):
        raise ValueError(f"cost_limit={cost_limit}: the limit on E[c] is a finite number")
    if lowest is not None and cost_limit <= lowest + 1e-6 * scale:
        raise ValueError(
            f"cost_limit={cost_limit:.9g}: the lowest attainable E[c] is {lowest:.6f}; "
            "choose a higher limit"
        )


def lambda_star(logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """The multiplier lambda* >= 0 at which E[c] meets the limit; 0 where the limit is slack.

    The root of the dual's slope, to 1e-14 of its size (a minimum itself is flat, and gives half the
    digits). Raises ValueError where no policy of full support can meet the limit.
    """
    check_limit(cost_limit, None)
    logp_ref, reward, cost = _problem(beta, logp_ref, reward=reward, cost=cost)

    def slope(lam):
        return cost_limit - _mean(_tilted(logp_ref, _score(reward, cost, lam), beta)[0], cost)

    if slope(0.0) >= 0:
        return 0.0
    check_limit(cost_limit, lowest_cost(cost, logp_ref), scale=min(1.0, np.ptp(cost)))
    high = 1.0
    while slope(high) < 0:
        high *= 2
        if high > LARGEST:
            raise ValueError(
                f"cost_limit={cost_limit:g}: its multiplier exceeds {LARGEST:g}; "
                "rescale reward and cost"
            )
    return float(brentq(slope, 0.0, high, xtol=1e-300, rtol=1e-14, maxiter=5000))


def kkt(logp, lam, logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """How far a policy and a multiplier are from solving the constrained problem: a dict.

    `slack` = cost_limit - E[c] (>= 0: feasible), `lam` (>= 0), `complementary` = lam slack (0 at
    the solution), `suboptimality` = beta KL(policy || pi*_lam), `gap` = g(lam) - (E[r] - beta KL):
    the duality gap, always suboptimality + complementary.
    """
    slack = cost_limit - expect(logp, cost)
    primal = expect(logp, reward) - beta * kl(logp, logp_ref)
    best = lagrangian_optimal(logp_ref, reward, cost, lam=lam, beta=beta)
    return {
        "slack": slack,
        "lam": float(lam),
        "complementary": lam * slack,
        "suboptimality": beta * kl(logp, best),
        "gap": dual(lam, logp_ref, reward, cost, beta=beta, cost_limit=cost_limit) - primal,
    }


# ---------------------------------------------------------------- frontiers
def reward_frontier(logp_ref, reward, betas):
    """The exact reward-KL frontier: rows (beta, E[r], KL to the reference); dE[r]/dKL = beta."""
    policies = [optimal(logp_ref, reward, beta=b) for b in betas]
    return np.array([(b, expect(p, reward), kl(p, logp_ref)) for b, p in zip(betas, policies)])


def cost_frontier(logp_ref, reward, cost, lams, *, beta):
    """The exact reward-cost frontier at one beta: rows (lambda, E[r], E[c], P(unsafe))."""
    rows = []
    for lam in lams:
        best = lagrangian_optimal(logp_ref, reward, cost, lam=lam, beta=beta)
        rows.append((lam, *(expect(best, values) for values in (reward, cost, cost > 0))))
    return np.array(rows)


def frontier_gap(logp, logp_ref, reward):
    """E[r] of the frontier at the policy's own KL, minus its E[r]: >= 0, and 0 on the frontier."""
    logp, logp_ref = _policy(logp), _policy(logp_ref, "logp_ref")
    reward, own = _values(reward, logp.shape, "reward"), kl(logp, logp_ref)
    return _best_reward(logp_ref, reward, own) - _mean(logp, reward)


def _best_reward(logp_ref, reward, own):
    """The largest E[r] of all policies at a KL of `own` nats to the reference.

    beta is looked for in units of the rewards' spread, so that rewards of any scale have the gap
    that they should.
    """
    if own == np.inf:  # then responses are open that the reference never gives
        return float(reward.max(axis=1).mean())
    possible = ~np.isneginf(logp_ref)
    best = np.where(possible, reward, -np.inf).max(axis=1)
    with np.errstate(over="ignore"):
        spread = (best - np.where(possible, reward, np.inf).min(axis=1)).max()
    if not np.isfinite(spread):
        raise ValueError("reward: its spread overflows; rescale it")

    def policy(log_beta):
        return _tilted(logp_ref, reward, spread * np.exp(log_beta))[0]

    def surplus(log_beta):
        return _kl(policy(log_beta), logp_ref) - own

    low, high = np.log(1e-3), np.log(FLATTEST)
    if spread == 0 or spread * STEEPEST == 0 or surplus(high) >= 0:
        return _mean(logp_ref, reward)
    if surplus(low) <= 0:
        low, high = np.log(STEEPEST), low
    if surplus(low) <= 0:  # beyond the frontier's end: the best response of each prompt
        return float(best.mean())
    return _mean(policy(brentq(surplus, low, high, xtol=1e-12, maxiter=5000)), reward)


def matched_gap(logp, logp_ref, reward, values):
    """E[r] of the best policy with the policy's own KL and E[values], minus its E[r]: >= 0.

    `values` [P, R] is what two policies are matched on: a cost, or 1{c > 0}. The best policy with
    no larger KL and the same E[values] is pi_ref exp((r - mu values) / b) / Z; its E[r] is the
    least value over b > 0 and mu of b E_x log E_ref exp((r - mu values) / b) + b KL + mu E[values],
    which is convex, and never below E[r] of any such policy.
    """
    logp_ref, reward, values = _problem(1.0, logp_ref, reward=reward, values=values)
    own, mean = kl(logp, logp_ref), expect(logp, values)

    def bound(at):
        b, mu = np.exp(at[0]), at[1]
        with np.errstate(over="ignore"):
            policy, tilted = _tilted(logp_ref, reward - mu * values, b)
        slopes = b * (own - _kl(policy, logp_ref)), mean - _mean(policy, values)
        return float(tilted.mean() + b * own + mu * mean), np.array(slopes)

    ends = [(np.log(1e-4), np.log(FLATTEST)), (-1e3, 1e3)]
    best = minimize(bound, [0.0, 0.0], jac=True, method="L-BFGS-B", bounds=ends, options=TIGHT)
    return best.fun - expect(logp, reward)


# ---------------------------------------------------------------- tokens
def token_advantages(paths, logp, values):
    """Advantage of every token on the response trie: E[value | prefix, token] - E[value | prefix].

    `paths` [R, T] numbers the trie's nodes along each response, -1 behind its end; `logp` and
    `values` [R] belong to one prompt. Returns [R, T], zero behind the end: along a response it sums
    to its value minus the mean value. Where a prefix forces the next token the advantage is 0, and
    so it is where the policy never gets.
    """
    logp = _policy(np.asarray(logp)[None])[0]
    weight, values = np.exp(logp), _values(values, logp.shape, "values")
    mass, before_mass = _along(paths, weight)
    total, before_total = _along(paths, weight * values)
    reached = (paths >= 0) & (mass > 0)
    mass, before_mass = np.where(reached, mass, 1.0), np.where(reached, before_mass, 1.0)
    return np.where(reached, total / mass - before_total / before_mass, 0.0)


def conditional_logps(paths, logp):
    """log p(token | prefix) of every token on the trie, nats: [R, T]; arguments as above.

    Zero behind the end, -inf for a token that the policy never takes, and 0 behind it.
    """
    mass, before = _along(paths, np.exp(_policy(np.asarray(logp)[None])[0]))
    reached = (paths >= 0) & (before > 0)
    with np.errstate(divide="ignore"):
        return np.where(reached, np.log(mass / np.where(before > 0, before, 1.0)), 0.0)


def _along(paths, weight):
    """Summed `weight` [R] of all responses through each token, and through its prefix: [R, T]."""
    real = paths >= 0
    node = np.zeros(int(paths.max()) + 1)
    np.add.at(node, paths[real], np.broadcast_to(weight[:, None], paths.shape)[real])
    here = np.where(real, node[paths], 1.0)
    return here, np.concatenate([np.full((len(paths), 1), weight.sum()), here[:, :-1]], axis=1)


# ---------------------------------------------------------------- what can be used, or ValueError
def _problem(beta, logp_ref, **values):
    """The reference and the tables of a problem, by name: float64 [P, R] each."""
    if not 0 < beta < np.inf:
        raise ValueError(f"beta={beta}: the KL strength must be positive and finite")
    logp_ref = _policy(logp_ref, "logp_ref")
    return logp_ref, *(_values(v, logp_ref.shape, name) for name, v in values.items())


def _policy(logp, name="logp"):
    """A policy as float64 [P, R]."""
    within = 1e-3 if getattr(logp, "dtype", None) == np.float32 else 1e-6
    logp = np.asarray(logp, dtype=float)
    if logp.ndim != 2 or 0 in logp.shape:
        raise ValueError(f"{name}: shape {logp.shape}; give log-probabilities [prompts, responses]")
    for x, y in np.argwhere(np.isnan(logp) | np.isposinf(logp))[:1]:
        raise ValueError(
            f"{name}: {logp[x, y]} at prompt {x}, response {y}; "
            "a log-probability is a number or -inf"
        )
    total = np.exp(logsumexp(logp, axis=1))
    for (x,) in np.argwhere(~(np.abs(total - 1) <= within))[:1]:
        raise ValueError(
            f"{name}: the probabilities of prompt {x} sum to {total[x]:.9g}, not 1; "
            "use optimum.normalise"
        )
    return logp


def _two_policies(logp, logq):
    """Two policies of the same shape."""
    logp, logq = _policy(logp), _policy(logq, "logq")
    if logp.shape != logq.shape:
        raise ValueError(f"logq: shape {logq.shape}, but the other policy has {logp.shape}")
    return logp, logq


def _values(values, shape, name, *, finite=True):
    """Numbers of each response as float64 [P, R]; those of all prompts may be given as [R]."""
    values = np.asarray(values, dtype=float)
    if values.shape not in (shape, shape[1:]):
        raise ValueError(
            f"{name}: shape {values.shape}; the policy has {shape[0]} prompts and {shape[1]} "
            "responses"
        )
    values = np.broadcast_to(values, shape)
    for x, y in np.argwhere(~np.isfinite(values) if finite else np.isnan(values))[:1]:
        raise ValueError(
            f"{name}: {values[x, y]} at prompt {x}, response {y}; give a finite number"
        )
    return values


def _score(reward, cost, lam):
    """r - lambda c [P, R]."""
    if not np.isfinite(lam):
        raise ValueError(f"lam={lam}: the multiplier is a finite number")
    with np.errstate(over="ignore"):
        score = reward - lam * cost
    if not np.isfinite(score).all():
        raise ValueError(f"lam={lam:g}: reward - lam cost overflows; rescale reward, cost and beta")
    return score
