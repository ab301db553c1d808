"""Checks of the notebooks' exercises: a hint while the answer is missing or wrong, a word when it is right."""

import numpy as np
from scipy.special import expit

from ..world import optimum


def _tables(seed=0, P=3, R=7):
    g = np.random.default_rng(seed)
    return optimum.normalise(g.normal(size=(P, R))), g.normal(size=(P, R)), g.normal(size=(P, R))


def _judge(name, answer, wanted, hint):
    if answer is None:
        print(f"{name}: not answered yet. Hint: {hint}")
    elif np.shape(answer) != np.shape(wanted):
        print(f"{name}: the shape is {np.shape(answer)}, wanted {np.shape(wanted)}. Hint: {hint}")
    elif not np.allclose(answer, wanted, atol=1e-6):
        print(f"{name}: not right yet. Hint: {hint}")
    else:
        print(f"{name}: correct")


def kl(f):
    logp, x, _ = _tables()
    logq = optimum.normalise(x)
    hint = "sum p (log p - log q) over the responses, then take the mean over prompts"
    _judge("kl", f(logp, logq), optimum.kl(logp, logq), hint)


def optimum_of(f):
    logp, r, _ = _tables()
    hint = (
        "add r / beta to log pi_ref, then subtract the log of the sum of exponentials of each row"
    )
    _judge("optimum", f(logp, r, 0.5), optimum.optimal(logp, r, beta=0.5), hint)


def multiplier(f):
    logp, r, c = _tables(seed=3)
    c = c - optimum.expect(optimum.optimal(logp, r, beta=0.5), c) + 0.3
    hint = "E[c] under pi*_lambda falls as lambda grows: halve the interval in which it crosses 0"
    wanted = optimum.lambda_star(logp, r, c, beta=0.5)
    answer = f(logp, r, c, 0.5)
    _judge(
        "multiplier", None if answer is None else round(float(answer), 5), round(wanted, 5), hint
    )


def loss(f):
    h = np.array([-2.0, 0.0, 0.7])
    _judge(
        "loss",
        f(h, 0.5),
        -np.log(expit(0.5 * h)),
        "minus the log of the logistic function of beta times h",
    )


def gradient_weight(f):
    h = np.array([-2.0, 0.0, 0.7])
    hint = "differentiate -log sigma(beta h) by h: beta times the probability that the pair is ordered wrongly"
    _judge("gradient weight", f(h, 0.5), 0.5 * expit(-0.5 * h), hint)


def implicit_reward(f):
    logp, r, _ = _tables()
    theta = optimum.optimal(logp, r, beta=0.5)
    hint = "beta times the log-ratio, minus its mean under the policy you care about: here the plain row mean"
    wanted = r - r.mean(axis=1, keepdims=True)
    _judge("implicit reward", f(theta, logp, 0.5), wanted, hint)


def transform(f):
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1)]
    answers, wanted = [f(*u) for u in pairs], ["keep", "keep", "swap", "drop"]
    word = (
        "not answered yet"
        if None in answers
        else "correct"
        if answers == wanted
        else "not right yet"
    )
    print(
        f"transform: {word}"
        + ("" if word == "correct" else ". Hint: look at the winner first, then at the loser")
    )


def margin(f):
    cases = [(5.0, 0, 0), (5.0, 0, 1), (5.0, 1, 0), (5.0, 1, 1), (0.0, 0, 1)]
    answers = [f(*case) for case in cases]
    hint = "it is 0 where both have the same status, and changes its sign when the two are swapped"
    _judge(
        "margin",
        None if None in answers else np.array(answers, float),
        np.array([0.0, 5.0, -5.0, 0.0, 0.0]),
        hint,
    )


def safe_optimum(f):
    logp, r, c = _tables()
    c[:, 0] = -1.0  # every prompt has a safe response
    hint = "weights pi_ref exp(r / beta), set to 0 where c > 0, then divided by the sum of each row"
    _judge(
        "safe optimum", f(logp, r, c, 0.5), np.exp(optimum.safe_optimal(logp, r, c, beta=0.5)), hint
    )


def dual_step(f):
    cases = [(0.5, 0.2, 0.0, 1.0), (0.1, -0.5, 0.0, 1.0), (0.3, -0.4, -0.4, 2.0)]
    answers = [f(*case) for case in cases]
    hint = "too costly: lambda rises; and it never falls below 0"
    _judge(
        "dual step",
        None if None in answers else np.array(answers, float),
        np.array([0.7, 0.0, 0.3]),
        hint,
    )


def label_probability(f):
    r, c = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.5, -0.5], [1.0, 1.0]])
    gap = (r - 0.8 * c) @ [1.0, -1.0]
    hint = (
        "the logistic function of the gap of r - lambda c between the first and the second response"
    )
    _judge("label probability", f(r, c, 0.8), expit(gap), hint)


def dual(f):
    logp, r, c = _tables()
    hint = "beta times the mean over prompts of log sum pi_ref exp((r - lambda c) / beta), plus lambda times the limit"
    answer = f(logp, r, c, 0.7, 0.5, -0.1)
    wanted = optimum.dual(0.7, logp, r, c, beta=0.5, cost_limit=-0.1)
    _judge("dual", None if answer is None else round(float(answer), 6), round(wanted, 6), hint)


def token_scores(f):
    w, sw, wl, sl = (np.array(x) for x in ([-1.0, -0.2], [-0.5, -0.4], [-0.3, -2.0], [-1.0, -1.0]))
    answer = f(w, sw, wl, sl)
    hint = "chosen: score reference minus policy; rejected: policy minus score reference"
    _judge(
        "token scores",
        None if answer is None else np.concatenate(answer),
        np.array([0.5, -0.2, 0.7, -1.0]),
        hint,
    )


def top_share(f):
    cases = [([0.3, 0.1, 0.3, -1.0, 0.2], 0.4), ([0.0, 1.0, 1.0, 1.0, 0.5], 0.3), ([2.0, 1.0], 1.0)]
    wanted = np.concatenate([[1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 1]]).astype(float)
    answers = [f(np.array(scores), keep) for scores, keep in cases]
    missing = any(a is None for a in answers)
    _judge(
        "top share",
        None if missing else np.concatenate(answers).astype(float),
        wanted,
        "a stable sort of -scores",
    )


def advantages(f):
    answer = f(np.array([0.5, 0.9, 0.9, -0.1, 1.0]))
    _judge(
        "advantages",
        answer,
        np.array([0.4, 0.0, -1.0, 1.1]),
        "what each token changes: value after minus before",
    )


def direction(f):
    answer = f(np.array([3.0, 1.0, 0.0]), np.array([0.0, 1.0, 4.0]))
    _judge(
        "direction",
        answer,
        np.array([0.6, 0.0, -0.8]),
        "chosen minus rejected, divided by its length",
    )


def gain(f):
    F, row = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([0.0, 1.0])
    before, after = (
        np.linalg.slogdet(np.eye(2) + m.T @ m / 0.5)[1] for m in (F, np.vstack([F, row]))
    )
    answer = f(F, row, 0.5)
    hint = "log(1 + row M^-1 row / ridge) with M = I + F^T F / ridge"
    _judge(
        "gain", None if answer is None else round(float(answer), 6), round(after - before, 6), hint
    )


def first_front(f):
    points = np.array([[1.0, 5.0], [2.0, 4.0], [1.5, 3.0], [3.0, 1.0], [0.5, 0.5]])
    answer = f(points)
    wanted = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    hint = "a point is on it unless another one is at least as large in both, and larger in one"
    _judge("first front", None if answer is None else np.asarray(answer, dtype=float), wanted, hint)


def labels_needed(f):
    unsafe = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [1, 0]])
    hint = "where one response is unsafe or both are, T's answer is the same whichever was called more helpful"
    _judge("labels needed", f(unsafe), np.array([1, 0, 0, 0, 1, 0]), hint)


def interaction(f):
    y = np.array([[0.61, 0.02], [0.05, 0.01]])
    answer = f(y)
    hint = "half the difference between the second lever's effect in the lower row and in the upper one"
    _judge("interaction", None if answer is None else float(answer), 0.275, hint)


def margin_optimum(f):
    logp, r, c = _tables(seed=5)
    hint = "the margin asks for delta more from safe over unsafe, so it is a reward: r - delta where c > 0"
    wanted = optimum.lagrangian_optimal(logp, r, c > 0, lam=2.0, beta=0.5)
    _judge("margin optimum", f(logp, r, c, 2.0, 0.5), np.exp(wanted), hint)


def win_rate(f):
    mine, other = np.array([1.0, 2.0, 0.5, 3.0, -1.0]), np.array([0.0, 2.0, 1.5, 1.0, -1.0])
    hint = "the share of prompts with the higher score, plus half the share of equal ones"
    answer = f(mine, other)
    _judge("win rate", None if answer is None else float(answer), 0.6, hint)


def true_share(f):
    hint = "measured = h (1 - false alarm) + (1 - h) missed: solve for h"
    answer = f(0.69, 0.1, 0.2)
    _judge("true share", None if answer is None else float(answer), 0.7, hint)


def clustered_error(f):
    values, prompts = np.array([1.0, 1.0, 0.0, 0.0, 1.0]), np.array([0, 0, 1, 1, 2])
    sums = np.array([0.8, -1.2, 0.4])  # of the deviations from the mean, by prompt
    hint = "sum the deviations of each prompt, square these sums, add them up; root, over N"
    answer = f(values, prompts)
    wanted = np.sqrt((sums**2).sum()) / 5
    _judge("standard error", None if answer is None else float(answer), wanted, hint)
