"""The notebooks' exercises: for each its cases, the right answer, typical mistakes, and hints.

A notebook calls `exercises.kl(my_kl)`, and `exercises.hint("kl", 2)` for more of a hint. How an
answer is judged, and what is said of it, is in `checking.py`. The cases of each exercise tell all
of its `slips` from the right answer: sign, missing beta, wrong axis, off by one, and what else is
common there. Log-probs and rewards are tables [P, R] of P prompts and R responses, in nats.
"""

import difflib

import numpy as np
from scipy.special import expit, logsumexp

from ..world import optimum
from .checking import Exercise


def tables(seed=0, P=3, R=7):
    """A made-up reference (log-probs), reward and cost, [P, R] each."""
    g = np.random.default_rng(seed)
    return optimum.normalise(g.normal(size=(P, R))), g.normal(size=(P, R)), g.normal(size=(P, R))


def total(weight, axis=1):
    """Weights [P, R] over their sum along an axis."""
    return weight / weight.sum(axis=axis, keepdims=True)


def log_z(score, axis=1):
    """Log of the sum of exponentials along an axis, kept as an axis of length 1."""
    return logsumexp(score, axis=axis, keepdims=True)


# ---------------------------------------------------------------- 00 · The world
def two_policies(seed, P, R):
    """Two policies, log-probs [P, R]."""
    logp, score, _ = tables(seed, P, R)
    return logp, optimum.normalise(score)


kl = Exercise(
    "kl",
    "logp logq",
    (two_policies(0, 3, 7), two_policies(1, 4, 2)),
    optimum.kl,
    {
        "That is KL(q || p): weigh by p, the first one": lambda p, q: optimum.kl(q, p),
        "The sign is turned: log p comes first": lambda p, q: -optimum.kl(p, q),
        "The sum is over responses (axis 1), the mean over prompts (axis 0); not the other way": (
            lambda p, q: (np.exp(p) * (p - q)).sum(axis=0).mean()
        ),
        "The mean over prompts is missing: that is the sum over all of them": (
            lambda p, q: (np.exp(p) * (p - q)).sum()
        ),
        "The mean over responses is none: each is weighted by its p, and they are summed": (
            lambda p, q: (np.exp(p) * (p - q)).mean()
        ),
        "The weight p is missing": lambda p, q: (p - q).sum(axis=1).mean(),
        "That is in bits; nats have the natural logarithm": (
            lambda p, q: optimum.kl(p, q) / np.log(2)
        ),
    },
    (
        "sum p (log p - log q) over the responses, then take the mean over prompts",
        "p is exp(logp). Axis 1 holds the responses, axis 0 the prompts",
        "(np.exp(logp) * (logp - logq)).sum(axis=1), and then its mean",
    ),
)

optimum_of = Exercise(
    "optimum_of",
    "logp_ref reward beta",
    ((*tables()[:2], 0.5), (*tables(1, 2, 4)[:2], 2.0)),
    lambda logp, r, beta: optimum.optimal(logp, r, beta=beta),
    {
        "The beta is missing: the reward is divided by it": (
            lambda logp, r, beta: optimum.optimal(logp, r, beta=1)
        ),
        "The reward is divided by beta, not multiplied by it": (
            lambda logp, r, beta: optimum.optimal(logp, r, beta=1 / beta)
        ),
        "The sign of the reward is turned": (
            lambda logp, r, beta: optimum.optimal(logp, -r, beta=beta)
        ),
        "It is not normalised: the probabilities of each prompt must sum to 1": (
            lambda logp, r, beta: logp + r / beta
        ),
        "Each prompt has a normaliser of its own: sum over axis 1, the responses": (
            lambda logp, r, beta: logp + r / beta - log_z(logp + r / beta, axis=0)
        ),
        "Each prompt has a normaliser of its own, not one for the whole table": (
            lambda logp, r, beta: logp + r / beta - logsumexp(logp + r / beta)
        ),
        "These are probabilities; wanted are their logarithms": (
            lambda logp, r, beta: np.exp(optimum.optimal(logp, r, beta=beta))
        ),
        "The reference is missing: its log-probs are part of the sum": (
            lambda logp, r, beta: optimum.normalise(r / beta)
        ),
    },
    (
        "add r / beta to log pi_ref, then subtract the log of the sum of exponentials of each row",
        "z = logp_ref + reward / beta; log Z is np.log(np.exp(z).sum(...)) over axis 1",
        "z - np.log(np.exp(z).sum(axis=1, keepdims=True))",
    ),
    title="optimum",
)


def shifted_costs(seed, mean, beta):
    """A problem whose DPO optimum has this E[c]: log-probs, reward, cost, beta."""
    logp, r, c = tables(seed)
    return logp, r, c - optimum.expect(optimum.optimal(logp, r, beta=beta), c) + mean, beta


def solved_lambda(logp, r, c, beta, lowest=0.0):
    """The root of E[c] under pi*_lambda, by bisection from `lowest`."""
    low, high = lowest, 100.0
    for _ in range(60):
        lam = (low + high) / 2
        best = optimum.lagrangian_optimal(logp, r, c, lam=lam, beta=beta)
        low, high = (lam, high) if optimum.expect(best, c) > 0 else (low, lam)
    return lam


multiplier = Exercise(
    "multiplier",
    "logp_ref reward cost beta",
    (shifted_costs(3, 0.3, 0.5), shifted_costs(4, 0.2, 2.0), shifted_costs(5, -0.2, 0.5)),
    lambda logp, r, c, beta: optimum.lambda_star(logp, r, c, beta=beta),
    {
        "The beta is missing: r - lambda c is divided by it": (
            lambda logp, r, c, beta: solved_lambda(logp, r, c, 1.0)
        ),
        "lambda* is never below 0: where the limit is met at once it is 0": (
            lambda logp, r, c, beta: solved_lambda(logp, r, c, beta, lowest=-100.0)
        ),
        "The reference is missing from pi*_lambda": (
            lambda logp, r, c, beta: solved_lambda(optimum.normalise(0 * r), r, c, beta)
        ),
        "The reward is missing from pi*_lambda": (
            lambda logp, r, c, beta: solved_lambda(logp, 0 * r, c, beta)
        ),
        "That is the other end: the search went up where it must go down": lambda *given: 100.0,
    },
    (
        "E[c] under pi*_lambda falls as lambda grows: halve the interval in which it crosses 0",
        "Keep low and high with E[c] > 0 at low. pi*_lambda is your optimum with the reward "
        "r - lambda c",
        "for _ in range(60): lam = (low + high) / 2, then low = lam if E[c] > 0 else high = lam; "
        "from low 0 and high 100",
    ),
)


# ---------------------------------------------------------------- 01 · DPO basics
MARGINS = np.array([-2.0, 0.0, 0.7, 3.0])

loss = Exercise(
    "loss",
    "h beta",
    ((MARGINS, 0.5), (MARGINS[::-1], 2.0)),
    lambda h, beta: np.logaddexp(0, -beta * h),
    {
        "The beta is missing: it multiplies h": lambda h, beta: np.logaddexp(0, -h),
        "h is multiplied by beta, not divided by it": lambda h, beta: np.logaddexp(0, -h / beta),
        "The sign of h is turned: a pair that is ordered rightly (h > 0) costs less": (
            lambda h, beta: np.logaddexp(0, beta * h)
        ),
        "The sign is turned: the loss is minus the log": lambda h, beta: np.log(expit(beta * h)),
        "The logarithm is missing: that is sigma(beta h)": lambda h, beta: expit(beta * h),
        "One loss a pair is wanted, not their mean": (
            lambda h, beta: np.logaddexp(0, -beta * h).mean()
        ),
    },
    (
        "minus the log of the logistic function of beta times h",
        "sigma(x) = 1 / (1 + exp(-x)), so -log sigma(x) = log(1 + exp(-x))",
        "np.log1p(np.exp(...)) of minus beta h, or np.logaddexp(0, ...)",
    ),
)

gradient_weight = Exercise(
    "gradient_weight",
    "h beta",
    ((MARGINS, 0.5), (MARGINS[::-1], 2.0)),
    lambda h, beta: beta * expit(-beta * h),
    {
        "The beta in front is missing: the chain rule gives one": (
            lambda h, beta: expit(-beta * h)
        ),
        "The beta inside is missing: it multiplies h there too": lambda h, beta: beta * expit(-h),
        "The sign is turned: that is dL/dh, and its size is wanted": (
            lambda h, beta: -beta * expit(-beta * h)
        ),
        "The sign of h is turned: the pair that is ordered wrongly (h < 0) pulls most": (
            lambda h, beta: beta * expit(beta * h)
        ),
        "That is the derivative of sigma, not of -log sigma": (
            lambda h, beta: beta * expit(beta * h) * expit(-beta * h)
        ),
        "One weight a pair is wanted, not their mean": (
            lambda h, beta: (beta * expit(-beta * h)).mean()
        ),
    },
    (
        "differentiate -log sigma(beta h) by h: beta times the probability that the pair is "
        "ordered wrongly",
        "d/dh log(1 + exp(-beta h)) = -beta exp(-beta h) / (1 + exp(-beta h)); take its size",
        "beta / (1 + np.exp(...)), where at h = 0 it is beta / 2",
    ),
)


def trained(seed, P, R, beta):
    """The optimum of a reward as the policy, its reference and beta."""
    logp, r, _ = tables(seed, P, R)
    return optimum.optimal(logp, r, beta=beta), logp, beta


def centred(values, axis=1):
    """Values minus their mean along an axis."""
    return values - values.mean(axis=axis, keepdims=True)


implicit_reward = Exercise(
    "implicit_reward",
    "logp logp_ref beta",
    (trained(0, 3, 7, 0.5), trained(1, 2, 4, 2.0)),
    lambda logp, ref, beta: centred(beta * (logp - ref)),
    {
        "The beta is missing: it multiplies the log-ratio": (
            lambda logp, ref, beta: centred(logp - ref)
        ),
        "The log-ratio is multiplied by beta, not divided by it": (
            lambda logp, ref, beta: centred((logp - ref) / beta)
        ),
        "The sign is turned: the policy's log-prob comes first": (
            lambda logp, ref, beta: centred(beta * (ref - logp))
        ),
        "The mean of each row is still in it: each row must have mean 0": (
            lambda logp, ref, beta: beta * (logp - ref)
        ),
        "The mean is that of each prompt: over axis 1, the responses": (
            lambda logp, ref, beta: centred(beta * (logp - ref), axis=0)
        ),
        "Each row has a mean of its own, not one for the whole table": (
            lambda logp, ref, beta: beta * (logp - ref) - (beta * (logp - ref)).mean()
        ),
        "The reference is missing: it is a ratio of two policies": (
            lambda logp, ref, beta: centred(beta * logp)
        ),
    },
    (
        "beta times the log-ratio, minus its mean under the policy you care about: here the plain "
        "row mean",
        "r = beta * (logp - logp_ref), one row a prompt. Take from each row its own mean",
        "r - r.mean(axis=1, keepdims=True)",
    ),
)


# ---------------------------------------------------------------- 02 · SafeDPO
def kept_swapped_dropped(u_w, u_l):
    """T in words."""
    if not u_w:
        return "keep"
    return "drop" if u_l else "swap"


transform = Exercise(
    "transform",
    "u_w u_l",
    ((0, 0), (0, 1), (1, 0), (1, 1)),
    kept_swapped_dropped,
    {
        "Only dropping the unsafe winners is DPO-safebetter; T swaps where the loser is safe": (
            lambda u_w, u_l: "drop" if u_w else "keep"
        ),
        "Two unsafe responses teach nothing about safety: T drops the pair": (
            lambda u_w, u_l: "swap" if u_w else "keep"
        ),
        "A pair of one safe and one unsafe response is what T is for: it is not dropped": (
            lambda u_w, u_l: "drop" if u_w or u_l else "keep"
        ),
        "Winner and loser are exchanged: u = 1 is unsafe, and u_w is the winner's": (
            lambda u_w, u_l: kept_swapped_dropped(u_l, u_w)
        ),
        "The sign of u is turned: 1 means unsafe": (
            lambda u_w, u_l: kept_swapped_dropped(1 - u_w, 1 - u_l)
        ),
    },
    (
        "look at the winner first, then at the loser",
        "A safe winner: keep. An unsafe winner: it depends on whether the loser is safe",
        "if u_w == 0: keep; else swap if u_l == 0, else drop; as words in quotes",
    ),
)

margin = Exercise(
    "margin",
    "delta u_w u_l",
    ((5.0, 0, 0), (5.0, 0, 1), (5.0, 1, 0), (5.0, 1, 1), (0.0, 0, 1), (2.5, 0, 1)),
    lambda delta, u_w, u_l: delta * (u_l - u_w),
    {
        "The sign is turned: the safe winner (u_w 0, u_l 1) must win by delta": (
            lambda delta, u_w, u_l: delta * (u_w - u_l)
        ),
        "It is signed: an unsafe winner over a safe loser has minus delta": (
            lambda delta, u_w, u_l: delta * max(0, u_l - u_w)
        ),
        "It is signed: swapping the two responses turns it": (
            lambda delta, u_w, u_l: delta * abs(u_l - u_w)
        ),
        "Two unsafe responses have the same status, and no margin": (
            lambda delta, u_w, u_l: delta * u_l
        ),
        "The delta is missing": lambda delta, u_w, u_l: u_l - u_w,
        "Only pairs of different status have a margin": lambda delta, u_w, u_l: delta,
    },
    (
        "it is 0 where both have the same status, and changes its sign when the two are swapped",
        "A difference of u_l and u_w is 1, 0 or -1; multiply it by delta",
        "delta * (... - ...), and (u_w, u_l) = (0, 1) gives + delta",
    ),
)


def with_free_costs(seed, P, R, beta):
    """A problem with a safe response for every prompt, and one whose cost is exactly 0."""
    logp, r, c = tables(seed, P, R)
    c[:, 0], c[:, 1], c[0, 2] = -1.0, 0.0, 0.7
    return logp, r, c, beta


safe_optimum = Exercise(
    "safe_optimum",
    "logp_ref reward cost beta",
    (with_free_costs(0, 3, 7, 0.5), with_free_costs(1, 2, 4, 2.0)),
    lambda logp, r, c, beta: np.exp(optimum.safe_optimal(logp, r, c, beta=beta)),
    {
        "A cost of exactly 0 is safe: unsafe is c > 0": (
            lambda logp, r, c, beta: total(np.exp(logp + r / beta) * (c < 0))
        ),
        "The sign of c is turned: these are the unsafe responses": (
            lambda logp, r, c, beta: total(np.exp(logp + r / beta) * (c > 0))
        ),
        "The beta is missing: the reward is divided by it": (
            lambda logp, r, c, beta: total(np.exp(logp + r) * (c <= 0))
        ),
        "It does not sum to 1: normalise after the unsafe ones are taken out": (
            lambda logp, r, c, beta: np.exp(optimum.optimal(logp, r, beta=beta)) * (c <= 0)
        ),
        "Each prompt has a normaliser of its own: sum over axis 1, the responses": (
            lambda logp, r, c, beta: total(np.exp(logp + r / beta) * (c <= 0), axis=0)
        ),
        "The unsafe responses are still in it": (
            lambda logp, r, c, beta: np.exp(optimum.optimal(logp, r, beta=beta))
        ),
        "These are logarithms; wanted are probabilities": (
            lambda logp, r, c, beta: optimum.safe_optimal(logp, r, c, beta=beta)
        ),
        "A price leaves unsafe responses some probability; wanted is exactly 0": (
            lambda logp, r, c, beta: np.exp(optimum.optimal(logp, r - 10 * (c > 0), beta=beta))
        ),
        "Unsafe is yes or no here: the size of the cost does not matter": (
            lambda logp, r, c, beta: np.exp(optimum.optimal(logp, r - c, beta=beta))
        ),
    },
    (
        "weights pi_ref exp(r / beta), set to 0 where c > 0, then divided by the sum of each row",
        "(cost <= 0) is an array of True and False: as a factor it is 1 and 0",
        "weight = np.exp(logp_ref + reward / beta) * (cost <= 0), over its sum along axis 1",
    ),
    zeros=True,
)


# ---------------------------------------------------------------- 03 · C-DPO
dual_step = Exercise(
    "dual_step",
    "lam mean_cost limit step_size",
    (
        (0.5, 0.2, 0.0, 1.0),
        (0.1, -0.5, 0.0, 1.0),
        (0.3, -0.4, -0.4, 2.0),
        (0.2, 0.5, 0.1, 0.5),
        (3.0, 0.6, -0.4, 2.0),
    ),
    lambda lam, cost, limit, step: max(0.0, lam + step * (cost - limit)),
    {
        "The sign is turned: a policy that is too costly makes lambda rise": (
            lambda lam, cost, limit, step: max(0.0, lam - step * (cost - limit))
        ),
        "lambda never falls below 0": lambda lam, cost, limit, step: lam + step * (cost - limit),
        "The limit is missing: what counts is the cost above it": (
            lambda lam, cost, limit, step: max(0.0, lam + step * cost)
        ),
        "The sign of the limit is turned": (
            lambda lam, cost, limit, step: max(0.0, lam + step * (cost + limit))
        ),
        "The step size is missing": lambda lam, cost, limit, step: max(0.0, lam + cost - limit),
        "The old lambda is missing: a step starts from it": (
            lambda lam, cost, limit, step: max(0.0, step * (cost - limit))
        ),
    },
    (
        "too costly: lambda rises; and it never falls below 0",
        "The dual's slope is limit - E[c], and descent goes against it: add step_size times the "
        "cost above the limit",
        "max(0.0, lam + step_size * (... - ...))",
    ),
)


def scored_pairs(seed, N):
    """Rewards and costs [N, 2] of pairs."""
    return tuple(values[:, :2].round(1) for values in tables(seed, N, 3)[1:])


def first_wins(score):
    """sigma of the gap between the first and the second column."""
    return expit(score[:, 0] - score[:, 1])


label_probability = Exercise(
    "label_probability",
    "r c lam",
    ((*scored_pairs(0, 3), 0.8), (*scored_pairs(1, 4), 2.0), (*scored_pairs(2, 2), 0.0)),
    lambda r, c, lam: first_wins(r - lam * c),
    {
        "The sign of lambda is turned: a cost is taken away": lambda r, c, lam: first_wins(
            r + lam * c
        ),
        "The sign is turned: that is the probability that the second one wins": (
            lambda r, c, lam: first_wins(lam * c - r)
        ),
        "The lambda is missing": lambda r, c, lam: first_wins(r - c),
        "The cost is missing": lambda r, c, lam: first_wins(r),
        "That is who wins by arg-max; wanted is the probability": (
            lambda r, c, lam: first_wins(1e9 * (r - lam * c)).round()
        ),
        "The logistic function is missing: that is the gap": lambda r, c, lam: (
            (r - lam * c)[:, 0] - (r - lam * c)[:, 1]
        ),
        "The two responses of a pair stand in a row: columns 0 and 1, not rows": (
            lambda r, c, lam: expit((r - lam * c)[0] - (r - lam * c)[1])
        ),
    },
    (
        "the logistic function of the gap of r - lambda c between the first and the second "
        "response",
        "score = r - lam * c is [N, 2]; the gap is score[:, 0] - score[:, 1]",
        "1 / (1 + np.exp(-gap))",
    ),
)


def priced(seed, P, R, lam, beta, limit):
    """A constrained problem at a multiplier."""
    return *tables(seed, P, R), lam, beta, limit


def scores_of(logp, r, c, lam, beta):
    """The exponent of pi*_lambda before it is normalised."""
    return logp + (r - lam * c) / beta


dual = Exercise(
    "dual",
    "logp_ref reward cost lam beta limit",
    (priced(0, 3, 7, 0.7, 0.5, -0.1), priced(1, 2, 4, 0.4, 2.0, 0.3)),
    lambda logp, r, c, lam, beta, limit: optimum.dual(lam, logp, r, c, beta=beta, cost_limit=limit),
    {
        "The beta in front of the logarithm is missing": lambda logp, r, c, lam, beta, limit: (
            log_z(scores_of(logp, r, c, lam, beta)).mean() + lam * limit
        ),
        "The beta inside the exponent is missing": lambda logp, r, c, lam, beta, limit: (
            beta * log_z(scores_of(logp, r, c, lam, 1.0)).mean() + lam * limit
        ),
        "The sign of the limit's part is turned: lambda times the limit is added": (
            lambda logp, r, c, lam, beta, limit: (
                beta * log_z(scores_of(logp, r, c, lam, beta)).mean() - lam * limit
            )
        ),
        "The limit's part is missing: lambda times the limit": (
            lambda logp, r, c, lam, beta, limit: (
                beta * log_z(scores_of(logp, r, c, lam, beta)).mean()
            )
        ),
        "The sign of lambda is turned: a cost is taken away": (
            lambda logp, r, c, lam, beta, limit: (
                beta * log_z(scores_of(logp, r, c, -lam, beta)).mean() + lam * limit
            )
        ),
        "The mean over prompts is one of logarithms, not the logarithm of a mean": (
            lambda logp, r, c, lam, beta, limit: (
                beta * np.log(np.exp(scores_of(logp, r, c, lam, beta)).sum(axis=1).mean())
                + lam * limit
            )
        ),
        "That is the sum over prompts; wanted is their mean": (
            lambda logp, r, c, lam, beta, limit: (
                beta * log_z(scores_of(logp, r, c, lam, beta)).sum() + lam * limit
            )
        ),
        "The sum inside the logarithm is over responses (axis 1)": (
            lambda logp, r, c, lam, beta, limit: (
                beta * log_z(scores_of(logp, r, c, lam, beta), axis=0).mean() + lam * limit
            )
        ),
    },
    (
        "beta times the mean over prompts of log sum pi_ref exp((r - lambda c) / beta), plus "
        "lambda times the limit",
        "pi_ref exp(x) is exp(logp_ref + x). Sum it over axis 1, take the log, then the mean",
        "beta * np.log(np.exp(logp_ref + ...).sum(axis=1)).mean() + lam * limit",
    ),
)


# ---------------------------------------------------------------- 04 · Selective-DPO
TOKENS = tuple(
    np.array(x) for x in ([-1.0, -0.2, -3.0], [-0.5, -0.4, -1.0], [-0.3, -2.0], [-1.0, -1.0])
)

token_scores = Exercise(
    "token_scores",
    "logp_w logp_score_w logp_l logp_score_l",
    (TOKENS,),
    lambda w, score_w, l, score_l: (score_w - w, l - score_l),
    {
        "The sign is turned on both sides": lambda w, score_w, l, score_l: (
            w - score_w,
            score_l - l,
        ),
        "The sign is turned on the chosen side: there the score reference comes first": (
            lambda w, score_w, l, score_l: (w - score_w, l - score_l)
        ),
        "The sign is turned on the rejected side: there the policy comes first": (
            lambda w, score_w, l, score_l: (score_w - w, score_l - l)
        ),
        "The two are exchanged: the chosen tokens' scores come first": (
            lambda w, score_w, l, score_l: (l - score_l, score_w - w)
        ),
        "One score a token is wanted, not their sum": lambda w, score_w, l, score_l: (
            (score_w - w).sum(),
            (l - score_l).sum(),
        ),
    },
    (
        "chosen: score reference minus policy; rejected: policy minus score reference",
        "A score is high where the policy has still to move: up on the chosen side, down on the "
        "rejected side",
        "return logp_score_w - logp_w, and for the rejected tokens the other way round",
    ),
)


def top(scores, count):
    """The highest scores as 1, the others as 0; of equal ones the earlier."""
    best = np.argsort(-scores, kind="stable")[: int(count)]
    return np.isin(np.arange(len(scores)), best).astype(float)


def exact_count(scores, keep):
    """keep times the number of tokens, free of rounding."""
    return round(keep * len(scores), 9)


SCORES = (
    (np.array([0.3, 0.1, 0.3, -1.0, 0.2]), 0.4),
    (np.array([0.0, 1.0, 1.0, 1.0, 0.5]), 0.3),
    (np.array([2.0, 1.0]), 1.0),
    (np.array([0.1, 0.4, -0.2, 0.3]), 0.3),
    (np.sin(np.arange(25.0)), 0.28),
)

top_share = Exercise(
    "top_share",
    "scores keep",
    SCORES,
    lambda scores, keep: top(scores, np.ceil(exact_count(scores, keep))),
    {
        "The sign is turned: these are the lowest scores": lambda scores, keep: top(
            -scores, np.ceil(exact_count(scores, keep))
        ),
        "Off by one: the count is rounded up, not down": lambda scores, keep: top(
            scores, np.floor(exact_count(scores, keep))
        ),
        "Off by one: the count is rounded up, not to the nearest": lambda scores, keep: top(
            scores, np.round(exact_count(scores, keep))
        ),
        "Off by one: 0.28 * 25 is a little more than 7 in floating point; round before that": (
            lambda scores, keep: top(scores, np.ceil(keep * len(scores)))
        ),
        "Off by one: that is one token too many": lambda scores, keep: top(
            scores, np.ceil(exact_count(scores, keep)) + 1
        ),
        "A threshold keeps all equal scores; wanted are exactly ceil(keep T) tokens": (
            lambda scores, keep: (
                scores >= np.sort(scores)[::-1][int(np.ceil(exact_count(scores, keep))) - 1]
            )
        ),
        "Of equal scores the later one is kept; sort stably, so that it is the earlier": (
            lambda scores, keep: top(scores[::-1], np.ceil(exact_count(scores, keep)))[::-1]
        ),
        "These are the places of the tokens; wanted is True or False for each token": (
            lambda scores, keep: np.flatnonzero(top(scores, np.ceil(exact_count(scores, keep))))
        ),
    },
    (
        "a stable sort of -scores",
        "np.argsort(-scores, kind='stable') lists the places from the highest score down; keep "
        "the first ceil(keep T) of them",
        "np.isin(np.arange(len(scores)), best), with the count int(np.ceil(round(keep * T, 9)))",
    ),
)

advantages = Exercise(
    "advantages",
    "prefix_values",
    ((np.array([0.5, 0.9, 0.9, -0.1, 1.0]),), (np.array([2.0, -1.0]),)),
    np.diff,
    {
        "The sign is turned: it is the value after the token minus the one before": (
            lambda values: -np.diff(values)
        ),
        "Off by one: the value before the first token is no token's": (
            lambda values: np.diff(values, prepend=0.0)
        ),
        "That is the change since the first prefix; wanted is what each token adds": (
            lambda values: values[1:] - values[0]
        ),
        "These are the values themselves; wanted is what each token changes": (
            lambda values: values[1:]
        ),
        "That is the value minus the mean; wanted is the value minus the one before": (
            lambda values: values[1:] - values.mean()
        ),
    },
    (
        "what each token changes: value after minus before",
        "T + 1 values have T differences of neighbours",
        "prefix_values[1:] - prefix_values[:-1]",
    ),
)


# ---------------------------------------------------------------- 05 · DOG
direction = Exercise(
    "direction",
    "chosen rejected",
    (
        (np.array([3.0, 1.0, 0.0]), np.array([0.0, 1.0, 4.0])),
        (np.array([1.0, -2.0]), np.array([2.0, 0.5])),
    ),
    lambda w, l: (w - l) / np.linalg.norm(w - l),
    {
        "The sign is turned: chosen minus rejected": lambda w, l: (l - w) / np.linalg.norm(w - l),
        "Its length is not 1": lambda w, l: w - l,
        "It is divided by its squared length; the root is missing": (
            lambda w, l: (w - l) / ((w - l) ** 2).sum()
        ),
        "The length is the root of the sum of squares, not the sum of sizes": (
            lambda w, l: (w - l) / np.abs(w - l).sum()
        ),
        "First the difference, then the length: not two unit vectors": (
            lambda w, l: w / np.linalg.norm(w) - l / np.linalg.norm(l)
        ),
    },
    (
        "chosen minus rejected, divided by its length",
        "The length is the root of the sum of squares: np.linalg.norm",
        "u = chosen - rejected; u / np.linalg.norm(u)",
    ),
)


def log_det(F, ridge):
    """log det(I + F^T F / ridge)."""
    return np.linalg.slogdet(np.eye(F.shape[1]) + F.T @ F / ridge)[1]


def row_inverse(F, row, ridge, scale=1.0):
    """row M^-1 row with M = scale I + F^T F / ridge."""
    M = scale * np.eye(F.shape[1]) + F.T @ F / ridge
    return row @ np.linalg.solve(M, row)


PICKED = np.array([[1.0, 0.0], [0.6, 0.8], [0.5, -0.5]])

gain = Exercise(
    "gain",
    "picked row ridge",
    (
        (PICKED, np.array([0.0, 1.0]), 0.5),
        (PICKED[:1] @ np.ones((2, 3)), np.array([1.0, -1.0, 0.5]), 2.0),
        (np.zeros((0, 2)), np.array([0.6, 0.8]), 0.5),
    ),
    lambda F, row, ridge: log_det(np.vstack([F, row]), ridge) - log_det(F, ridge),
    {
        "The ridge is missing around the row: its part is divided by it too": (
            lambda F, row, ridge: np.log1p(row_inverse(F, row, ridge))
        ),
        "The ridge is missing in M: F^T F is divided by it": (
            lambda F, row, ridge: np.log1p(row_inverse(F, row, 1.0) / ridge)
        ),
        "The ridge is missing": lambda F, row, ridge: np.log1p(row_inverse(F, row, 1.0)),
        "The 1 inside the logarithm is missing": (
            lambda F, row, ridge: np.log(row_inverse(F, row, ridge) / ridge)
        ),
        "The logarithm is missing": lambda F, row, ridge: row_inverse(F, row, ridge) / ridge,
        "That is the whole log-determinant; wanted is what the row adds": (
            lambda F, row, ridge: log_det(np.vstack([F, row]), ridge)
        ),
        "What is already picked must count: M is not the identity": (
            lambda F, row, ridge: np.log1p(row @ row / ridge)
        ),
        "The sign is turned": lambda F, row, ridge: (
            log_det(F, ridge) - log_det(np.vstack([F, row]), ridge)
        ),
    },
    (
        "log(1 + row M^-1 row / ridge) with M = I + F^T F / ridge",
        "M is [d, d], so it is picked.T @ picked; np.linalg.solve(M, row) is M^-1 row",
        "np.log1p(row @ np.linalg.solve(M, row) / ridge)",
    ),
)


def on_front(points, beats):
    """1 for a point that no other one beats; `beats` says it of two arrays [N, N, 2]."""
    return 1.0 - beats(points[None], points[:, None]).any(axis=1)


def dominates(a, b):
    """At least as large in both, and larger in one."""
    return (a >= b).all(axis=2) & (a > b).any(axis=2)


first_front = Exercise(
    "first_front",
    "points",
    (
        (np.array([[1.0, 5.0], [2.0, 4.0], [1.5, 3.0], [3.0, 1.0], [0.5, 0.5]]),),
        (np.array([[2.0, 4.0], [2.0, 3.0], [1.0, 4.0], [2.0, 4.0], [3.0, 0.0]]),),
        (np.array([[1.0, 1.0]]),),
    ),
    lambda points: on_front(points, dominates),
    {
        "Larger in one and equal in the other dominates already; it need not be larger in both": (
            lambda points: on_front(points, lambda a, b: (a > b).all(axis=2))
        ),
        "Two equal points do not dominate each other: both are on the front": (
            lambda points: on_front(
                points,
                lambda a, b: (a >= b).all(axis=2) & ~np.eye(len(points), dtype=bool),
            )
        ),
        "The sign is turned: both are to be large": lambda points: on_front(-points, dominates),
        "Being larger in one alone does not dominate: it must not be smaller in the other": (
            lambda points: on_front(points, lambda a, b: (a > b).any(axis=2))
        ),
        "That is the largest sum; the front has every point that nobody dominates": (
            lambda points: 1.0 * (points.sum(axis=1) == points.sum(axis=1).max())
        ),
        "These are the points that are dominated": lambda points: 1.0 - on_front(points, dominates),
        "These are the places of the points; wanted is True or False for each": (
            lambda points: np.flatnonzero(on_front(points, dominates))
        ),
    },
    (
        "a point is on it unless another one is at least as large in both, and larger in one",
        "Compare all with all: points[None] >= points[:, None] is [N, N, 2]; look along axis 2",
        "~(all(axis=2) of >=, and any(axis=2) of >), and then any(axis=1)",
    ),
)


# ---------------------------------------------------------------- 06 · One loss, four levers
UNSAFE = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [1, 0]])

labels_needed = Exercise(
    "labels_needed",
    "unsafe",
    ((UNSAFE,), (UNSAFE[:2],), (UNSAFE[2:5],)),
    lambda unsafe: 1.0 * (unsafe.sum(axis=1) == 0),
    {
        "Two unsafe responses are dropped, so nobody has to compare them": (
            lambda unsafe: 1.0 * (unsafe[:, 0] == unsafe[:, 1])
        ),
        "In a pair of one safe and one unsafe response the safe one wins without asking": (
            lambda unsafe: 1.0 * (unsafe.sum(axis=1) < 2)
        ),
        "The sign is turned: these are the pairs that need no label": (
            lambda unsafe: 1.0 * (unsafe.sum(axis=1) > 0)
        ),
        "The sign of u is turned: 1 means unsafe": (lambda unsafe: 1.0 * (unsafe.sum(axis=1) == 2)),
        "T looks at both responses, not at the first alone": lambda unsafe: (
            1.0 * (unsafe[:, 0] == 0)
        ),
        "One answer a pair, a row: sum over axis 1": lambda unsafe: 1.0 * (unsafe.sum(axis=0) == 0),
        "That is how many; wanted is 1 or 0 for each pair": lambda unsafe: (
            unsafe.sum(axis=1) == 0
        ).sum(),
    },
    (
        "where one response is unsafe or both are, T's answer is the same whichever was called "
        "more helpful",
        "Only where both are safe does T keep the label as it is",
        "1 where unsafe.sum(axis=1) == 0",
    ),
)

interaction = Exercise(
    "interaction",
    "y",
    ((np.array([[0.61, 0.02], [0.05, 0.01]]),), (np.array([[1.0, 2.0], [3.0, 5.0]]),)),
    lambda y: ((y[1, 1] - y[1, 0]) - (y[0, 1] - y[0, 0])) / 2,
    {
        "The half is missing": lambda y: (y[1, 1] - y[1, 0]) - (y[0, 1] - y[0, 0]),
        "The sign is turned: the lower row's effect comes first": (
            lambda y: ((y[0, 1] - y[0, 0]) - (y[1, 1] - y[1, 0])) / 2
        ),
        "That is the second lever's effect, the mean of the two rows": (
            lambda y: ((y[1, 1] - y[1, 0]) + (y[0, 1] - y[0, 0])) / 2
        ),
        "That is the first lever's effect, the mean of the two columns": (
            lambda y: ((y[1, 0] - y[0, 0]) + (y[1, 1] - y[0, 1])) / 2
        ),
        "That is what both levers do together": lambda y: y[1, 1] - y[0, 0],
        "A quarter is too little: half the difference of two effects": (
            lambda y: ((y[1, 1] - y[1, 0]) - (y[0, 1] - y[0, 0])) / 4
        ),
    },
    (
        "half the difference between the second lever's effect in the lower row and in the upper "
        "one",
        "The effect in a row is y[row, 1] - y[row, 0]",
        "(effect[1] - effect[0]) / 2",
    ),
)


def with_zero_costs(seed, P, R, delta, beta):
    """A problem with costs of exactly 0, a margin and beta."""
    logp, r, c = tables(seed, P, R)
    c[:, 1], c[0, 0] = 0.0, 0.6
    return logp, r, c, delta, beta


def priced_optimum(logp, r, price, beta):
    """Probabilities of the optimum of r - price."""
    return np.exp(optimum.optimal(logp, r - price, beta=beta))


margin_optimum = Exercise(
    "margin_optimum",
    "logp_ref reward cost delta beta",
    (with_zero_costs(5, 3, 7, 2.0, 0.5), with_zero_costs(6, 2, 4, 1.0, 2.0)),
    lambda logp, r, c, delta, beta: priced_optimum(logp, r, delta * (c > 0), beta),
    {
        "The margin is the same for every unsafe response: the size of c does not matter": (
            lambda logp, r, c, delta, beta: priced_optimum(logp, r, delta * c, beta)
        ),
        "A cost of exactly 0 is safe: unsafe is c > 0": (
            lambda logp, r, c, delta, beta: priced_optimum(logp, r, delta * (c >= 0), beta)
        ),
        "The sign is turned: unsafe responses lose delta": (
            lambda logp, r, c, delta, beta: priced_optimum(logp, r, -delta * (c > 0), beta)
        ),
        "The beta is missing: r - delta is divided by it": (
            lambda logp, r, c, delta, beta: priced_optimum(logp, r, delta * (c > 0), 1.0)
        ),
        "The margin stands outside beta in the loss, so in the reward it is divided by beta too": (
            lambda logp, r, c, delta, beta: priced_optimum(logp, r, beta * delta * (c > 0), beta)
        ),
        "The margin is finite: unsafe responses keep some probability": (
            lambda logp, r, c, delta, beta: priced_optimum(logp, r, 1e6 * (c > 0), beta)
        ),
        "Each prompt has a normaliser of its own: sum over axis 1, the responses": (
            lambda logp, r, c, delta, beta: total(
                np.exp(logp + (r - delta * (c > 0)) / beta), axis=0
            )
        ),
        "These are logarithms; wanted are probabilities": lambda logp, r, c, delta, beta: np.log(
            priced_optimum(logp, r, delta * (c > 0), beta)
        ),
    },
    (
        "the margin asks for delta more from safe over unsafe, so it is a reward: r - delta where "
        "c > 0",
        "It is the optimum of DPO with reward - delta * (cost > 0) in place of the reward",
        "weights = np.exp(logp_ref + (reward - delta * (cost > 0)) / beta), over each row's sum",
    ),
)


# ---------------------------------------------------------------- 07 · A real model
def whole_answers(seed, mean=-40.0):
    """Log-probs of whole answers [3, 5], far from normalised."""
    return np.random.default_rng(seed).normal(mean, 8.0, size=(3, 5))


def one_less(logp):
    """The same, where the last prompt has one answer less."""
    logp[-1, -1] = -np.inf
    return logp


restriction = Exercise(
    "restriction",
    "logp",
    ((one_less(whole_answers(0)),), (whole_answers(3, mean=-900.0),)),
    optimum.normalise,
    {
        "exp(-900) is 0 in floating point: take the largest of each row out first": (
            lambda logp: logp - np.log(np.exp(logp).sum(axis=1, keepdims=True))
        ),
        "Each prompt has a normaliser of its own: over axis 1, the answers": (
            lambda logp: logp - log_z(logp, axis=0)
        ),
        "Each prompt has a normaliser of its own, not one for the whole table": (
            lambda logp: logp - logsumexp(logp)
        ),
        "These are probabilities; wanted are their logarithms": (
            lambda logp: np.exp(optimum.normalise(logp))
        ),
        "The sign is turned: log Z is subtracted": lambda logp: logp + log_z(logp),
        "The largest is taken out, but it does not sum to 1 yet": (
            lambda logp: logp - logp.max(axis=1, keepdims=True)
        ),
    },
    (
        "subtract the log of the sum of exponentials of each row; e to the -40 needs no table of "
        "its own: take the largest out first",
        "top = logp.max(axis=1, keepdims=True); log Z = top + log of the sum of exp(logp - top)",
        "logp - top - np.log(np.exp(logp - top).sum(axis=1, keepdims=True))",
    ),
)


def pair_of_answers(i, j, whole=True):
    """Two policies on the same answers, whole or restricted, and two answers."""
    both = whole_answers(1), whole_answers(2)
    return *(both if whole else map(optimum.normalise, both)), i, j


log_ratio_difference = Exercise(
    "log_ratio_difference",
    "theta ref i j",
    (pair_of_answers(0, 2), pair_of_answers(0, 2, whole=False), pair_of_answers(3, 1)),
    lambda theta, ref, i, j: (theta - ref)[:, i] - (theta - ref)[:, j],
    {
        "The sign is turned: answer i comes first": lambda theta, ref, i, j: (
            (theta - ref)[:, j] - (theta - ref)[:, i]
        ),
        "The reference is missing: it is a difference of two log-ratios": (
            lambda theta, ref, i, j: theta[:, i] - theta[:, j]
        ),
        "The answers are columns; i and j are no rows": lambda theta, ref, i, j: (
            (theta - ref)[i % 3] - (theta - ref)[j % 3]
        ),
        "That is answer i alone; wanted is i minus j": lambda theta, ref, i, j: (theta - ref)[:, i],
        "i and j are given: they are not always 0 and 1": lambda theta, ref, i, j: (
            (theta - ref)[:, 0] - (theta - ref)[:, 1]
        ),
        "That is a ratio; wanted is its logarithm": lambda theta, ref, i, j: np.exp(
            (theta - ref)[:, i] - (theta - ref)[:, j]
        ),
    },
    (
        "log theta minus log ref of answer i, minus the same of answer j: whole or restricted, the "
        "normalisers cancel",
        "logratio = theta - ref is [P, R]; take two of its columns",
        "logratio[:, i] - logratio[:, j]",
    ),
)

change_of_mass = Exercise(
    "change_of_mass",
    "theta ref",
    (
        (whole_answers(1), whole_answers(2)),
        (whole_answers(4, mean=-900.0), whole_answers(5, mean=-905.0)),
    ),
    lambda theta, ref: logsumexp(theta, axis=1) - logsumexp(ref, axis=1),
    {
        "The sign is turned: theta comes first": lambda theta, ref: (
            logsumexp(ref, axis=1) - logsumexp(theta, axis=1)
        ),
        "exp(-900) is 0 in floating point: take the largest of each row out first": (
            lambda theta, ref: np.log(np.exp(theta).sum(axis=1)) - np.log(np.exp(ref).sum(axis=1))
        ),
        "Masses are sums of probabilities; a sum of log-probs is the log of a product": (
            lambda theta, ref: (theta - ref).sum(axis=1)
        ),
        "That is a mean of log-ratios; wanted is the log-ratio of two sums": (
            lambda theta, ref: (theta - ref).mean(axis=1)
        ),
        "One number a prompt, a row: sum over axis 1": lambda theta, ref: (
            logsumexp(theta, axis=0) - logsumexp(ref, axis=0)
        ),
        "The reference is missing: wanted is a change": lambda theta, ref: logsumexp(theta, axis=1),
    },
    (
        "log of the sum of exponentials of a row, of theta minus that of ref",
        "np.logaddexp.reduce(table, axis=1) is that log, without underflow",
        "np.logaddexp.reduce(theta, axis=1), minus the same of ref",
    ),
)


# ---------------------------------------------------------------- 08 · Your own pairs
MINE = np.array([1.0, 2.0, 0.5, 3.0, -1.0])
OTHER = np.array([0.0, 2.0, 1.5, 1.0, -1.0])

win_rate = Exercise(
    "win_rate",
    "mine other",
    ((MINE, OTHER), (MINE[:3], OTHER[:3]), (OTHER[2:4], MINE[2:4])),
    lambda mine, other: ((mine > other) + 0.5 * (mine == other)).mean(),
    {
        "A tie counts half, not nothing": lambda mine, other: (mine > other).mean(),
        "A tie counts half, not a whole win": lambda mine, other: (mine >= other).mean(),
        "The sign is turned: that is the other one's win rate": lambda mine, other: (
            (mine < other) + 0.5 * (mine == other)
        ).mean(),
        "That is in percent; wanted is a share": lambda mine, other: (
            100 * ((mine > other) + 0.5 * (mine == other)).mean()
        ),
        "Ties are left out of the share; they count half": lambda mine, other: (
            (mine > other).sum() / (mine != other).sum()
        ),
        "That is how many; wanted is a share": lambda mine, other: (
            (mine > other) + 0.5 * (mine == other)
        ).sum(),
        "That is the mean difference of scores; a win counts 1 however large": (
            lambda mine, other: (mine - other).mean()
        ),
    },
    (
        "the share of prompts with the higher score, plus half the share of equal ones",
        "(mine > other) and (mine == other) are True or False for each prompt: their means are "
        "shares",
        "np.mean((mine > other) + 0.5 * (mine == other))",
    ),
)

true_share = Exercise(
    "true_share",
    "measured false_alarm missed",
    ((0.69, 0.1, 0.2), (0.5, 0.3, 0.1), (0.8, 0.0, 0.0)),
    lambda measured, alarm, missed: (measured - missed) / (1 - alarm - missed),
    {
        "The two errors are exchanged: what is missed counts as harmless": (
            lambda measured, alarm, missed: (measured - alarm) / (1 - alarm - missed)
        ),
        "What is missed is still in the measured share: subtract it": (
            lambda measured, alarm, missed: measured / (1 - alarm - missed)
        ),
        "Missed answers are not corrected: only the false alarms are": (
            lambda measured, alarm, missed: measured / (1 - alarm)
        ),
        "That is the measured share of a true one; it is asked the other way round": (
            lambda measured, alarm, missed: measured * (1 - alarm) + (1 - measured) * missed
        ),
        "The sign of missed is turned": (
            lambda measured, alarm, missed: (measured + missed) / (1 - alarm - missed)
        ),
        "The denominator is missing": lambda measured, alarm, missed: measured - missed,
        "The errors change the sum, they do not add to the share": (
            lambda measured, alarm, missed: measured + alarm - missed
        ),
    },
    (
        "measured = h (1 - false alarm) + (1 - h) missed: solve for h",
        "Bring h to one side: measured - missed = h (1 - false_alarm - missed)",
        "(measured - missed) / (1 - ... - ...)",
    ),
)

ANSWERS = np.array([1.0, 1.0, 0.0, 0.0, 1.0])


def prompt_sums(values, prompts):
    """Summed deviations from the mean, by prompt."""
    off = values - values.mean()
    return np.array([off[prompts == p].sum() for p in np.unique(prompts)])


clustered_error = Exercise(
    "clustered_error",
    "values prompts",
    (
        (ANSWERS, np.array([0, 0, 1, 1, 2])),
        (ANSWERS, np.array([7, 3, 7, 3, 7])),
        (np.array([2.0, 0.5, 1.0, 4.0]), np.array([5, 5, 9, 5])),
    ),
    lambda values, prompts: np.sqrt((prompt_sums(values, prompts) ** 2).sum()) / len(values),
    {
        "Answers to one prompt are not independent: sum their deviations before squaring": (
            lambda values, prompts: np.sqrt(((values - values.mean()) ** 2).sum()) / len(values)
        ),
        "That is the formula of independent answers, std over root N": (
            lambda values, prompts: values.std(ddof=1) / np.sqrt(len(values))
        ),
        "Divide by N, the number of answers, not of prompts": lambda values, prompts: (
            np.sqrt((prompt_sums(values, prompts) ** 2).sum()) / len(np.unique(prompts))
        ),
        "The root is missing": lambda values, prompts: (
            (prompt_sums(values, prompts) ** 2).sum() / len(values)
        ),
        "The root of N is too little: divide by N": lambda values, prompts: np.sqrt(
            (prompt_sums(values, prompts) ** 2).sum() / len(values)
        ),
        "That treats each prompt's mean as one value, whatever the number of its answers": (
            lambda values, prompts: (
                np.std([values[prompts == p].mean() for p in np.unique(prompts)], ddof=1)
                / np.sqrt(len(np.unique(prompts)))
            )
        ),
        "The mean is not taken away: sum deviations from it": lambda values, prompts: (
            np.sqrt(sum(values[prompts == p].sum() ** 2 for p in np.unique(prompts))) / len(values)
        ),
    },
    (
        "sum the deviations of each prompt, square these sums, add them up; root, over N",
        "off = values - values.mean(); for each of np.unique(prompts) sum off[prompts == p]",
        "np.sqrt(np.square(sums).sum()) / len(values)",
    ),
    title="standard error",
)


# ---------------------------------------------------------------- hints on request
EXERCISES = {e.name: e for e in list(globals().values()) if isinstance(e, Exercise)}


def hint(name, level=1):
    """Print a hint to an exercise, by its name: level 1 (the idea), 2 (the steps), 3 (the code).

    What cannot be answered is said in one line.
    """
    name = getattr(name, "name", name)
    if name not in EXERCISES:
        near = difflib.get_close_matches(str(name), EXERCISES, n=3, cutoff=0.0)
        print(f"hint: no exercise {name!r}; did you mean {', '.join(near)}?")
    elif level not in (1, 2, 3):
        print(f"hint: level {level!r}; give 1 (the idea), 2 (the steps) or 3 (nearly the code)")
    else:
        print(EXERCISES[name].hint(level))
