"""Checks of the notebooks' exercises: a hint while the answer is missing or wrong, a word when it is right."""

import numpy as np
from scipy.special import expit

from .. import optimum


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
    hint = "add r / beta to log pi_ref, then subtract the log of the sum of exponentials of each row"
    _judge("optimum", f(logp, r, 0.5), optimum.optimal(logp, r, beta=0.5), hint)


def multiplier(f):
    logp, r, c = _tables(seed=3)
    c = c - optimum.expect(optimum.optimal(logp, r, beta=0.5), c) + 0.3
    hint = "E[c] under pi*_lambda falls as lambda grows: halve the interval in which it crosses 0"
    wanted = optimum.lambda_star(logp, r, c, beta=0.5)
    answer = f(logp, r, c, 0.5)
    _judge("multiplier", None if answer is None else round(float(answer), 5), round(wanted, 5), hint)


def loss(f):
    h = np.array([-2.0, 0.0, 0.7])
    _judge("loss", f(h, 0.5), -np.log(expit(0.5 * h)), "minus the log of the logistic function of beta times h")


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
