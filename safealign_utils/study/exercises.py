"""Checks of the notebooks' exercises; the docstring of each is the hint to a wrong answer."""

import numpy as np
from scipy.special import expit

from ..world import optimum


def _tables(seed=0, P=3, R=7):
    g = np.random.default_rng(seed)
    return optimum.normalise(g.normal(size=(P, R))), g.normal(size=(P, R)), g.normal(size=(P, R))


def _judge(check, answer, wanted, name="", atol=1e-6):
    """Print a word on an answer: an array or a number, or a list or tuple of them, joined."""
    name, hint = name or check.__name__.replace("_", " "), " ".join(check.__doc__.split())
    parts = answer if isinstance(answer, (list, tuple)) else [answer]
    if any(part is None for part in parts):
        print(f"{name}: not answered yet. Hint: {hint}")
        return
    answer = answer if parts is not answer else np.hstack(parts)
    if np.shape(answer) != np.shape(wanted):
        print(f"{name}: the shape is {np.shape(answer)}, wanted {np.shape(wanted)}. Hint: {hint}")
    elif not np.allclose(answer, wanted, atol=atol):
        print(f"{name}: not right yet. Hint: {hint}")
    else:
        print(f"{name}: correct")


def kl(f):
    """sum p (log p - log q) over the responses, then take the mean over prompts"""
    logp, x, _ = _tables()
    logq = optimum.normalise(x)
    _judge(kl, f(logp, logq), optimum.kl(logp, logq))


def optimum_of(f):
    """add r / beta to log pi_ref, then subtract the log of the sum of exponentials of each row"""
    logp, r, _ = _tables()
    _judge(optimum_of, f(logp, r, 0.5), optimum.optimal(logp, r, beta=0.5), name="optimum")


def multiplier(f):
    """E[c] under pi*_lambda falls as lambda grows: halve the interval in which it crosses 0"""
    logp, r, c = _tables(seed=3)
    c = c - optimum.expect(optimum.optimal(logp, r, beta=0.5), c) + 0.3
    _judge(multiplier, f(logp, r, c, 0.5), optimum.lambda_star(logp, r, c, beta=0.5), atol=1e-5)


def loss(f):
    """minus the log of the logistic function of beta times h"""
    h = np.array([-2.0, 0.0, 0.7])
    _judge(loss, f(h, 0.5), -np.log(expit(0.5 * h)))


def gradient_weight(f):
    """differentiate -log sigma(beta h) by h: beta times the probability that the pair is ordered
    wrongly"""
    h = np.array([-2.0, 0.0, 0.7])
    _judge(gradient_weight, f(h, 0.5), 0.5 * expit(-0.5 * h))


def implicit_reward(f):
    """beta times the log-ratio, minus its mean under the policy you care about: here the plain row
    mean"""
    logp, r, _ = _tables()
    theta = optimum.optimal(logp, r, beta=0.5)
    _judge(implicit_reward, f(theta, logp, 0.5), r - r.mean(axis=1, keepdims=True))


def transform(f):
    """look at the winner first, then at the loser"""
    words = {"None": None, "keep": 0, "swap": 1, "drop": 2}
    answers = [words.get(str(f(*statuses)), -1) for statuses in ((0, 0), (0, 1), (1, 0), (1, 1))]
    _judge(transform, answers, [0, 0, 1, 2])


def margin(f):
    """it is 0 where both have the same status, and changes its sign when the two are swapped"""
    cases = [(5.0, 0, 0), (5.0, 0, 1), (5.0, 1, 0), (5.0, 1, 1), (0.0, 0, 1)]
    _judge(margin, [f(*case) for case in cases], [0.0, 5.0, -5.0, 0.0, 0.0])


def safe_optimum(f):
    """weights pi_ref exp(r / beta), set to 0 where c > 0, then divided by the sum of each row"""
    logp, r, c = _tables()
    c[:, 0] = -1.0  # every prompt has a safe response
    _judge(safe_optimum, f(logp, r, c, 0.5), np.exp(optimum.safe_optimal(logp, r, c, beta=0.5)))


def dual_step(f):
    """too costly: lambda rises; and it never falls below 0"""
    cases = [(0.5, 0.2, 0.0, 1.0), (0.1, -0.5, 0.0, 1.0), (0.3, -0.4, -0.4, 2.0)]
    _judge(dual_step, [f(*case) for case in cases], [0.7, 0.0, 0.3])


def label_probability(f):
    """the logistic function of the gap of r - lambda c between the first and the second response"""
    r, c = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.5, -0.5], [1.0, 1.0]])
    gap = (r - 0.8 * c) @ [1.0, -1.0]
    _judge(label_probability, f(r, c, 0.8), expit(gap))


def dual(f):
    """beta times the mean over prompts of log sum pi_ref exp((r - lambda c) / beta), plus lambda
    times the limit"""
    logp, r, c = _tables()
    wanted = optimum.dual(0.7, logp, r, c, beta=0.5, cost_limit=-0.1)
    _judge(dual, f(logp, r, c, 0.7, 0.5, -0.1), wanted)


def token_scores(f):
    """chosen: score reference minus policy; rejected: policy minus score reference"""
    w, sw, wl, sl = (np.array(x) for x in ([-1.0, -0.2], [-0.5, -0.4], [-0.3, -2.0], [-1.0, -1.0]))
    _judge(token_scores, f(w, sw, wl, sl), [0.5, -0.2, 0.7, -1.0])


def top_share(f):
    """a stable sort of -scores"""
    cases = [([0.3, 0.1, 0.3, -1.0, 0.2], 0.4), ([0.0, 1.0, 1.0, 1.0, 0.5], 0.3), ([2.0, 1.0], 1.0)]
    answers = [f(np.array(scores), keep) for scores, keep in cases]
    _judge(top_share, answers, [1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1])


def advantages(f):
    """what each token changes: value after minus before"""
    _judge(advantages, f(np.array([0.5, 0.9, 0.9, -0.1, 1.0])), [0.4, 0.0, -1.0, 1.1])


def direction(f):
    """chosen minus rejected, divided by its length"""
    _judge(direction, f(np.array([3.0, 1.0, 0.0]), np.array([0.0, 1.0, 4.0])), [0.6, 0.0, -0.8])


def gain(f):
    """log(1 + row M^-1 row / ridge) with M = I + F^T F / ridge"""
    F, row = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([0.0, 1.0])
    matrices = (np.eye(2) + m.T @ m / 0.5 for m in (F, np.vstack([F, row])))
    before, after = (np.linalg.slogdet(m)[1] for m in matrices)
    _judge(gain, f(F, row, 0.5), after - before)


def first_front(f):
    """a point is on it unless another one is at least as large in both, and larger in one"""
    points = np.array([[1.0, 5.0], [2.0, 4.0], [1.5, 3.0], [3.0, 1.0], [0.5, 0.5]])
    _judge(first_front, f(points), [1, 1, 0, 1, 0])


def labels_needed(f):
    """where one response is unsafe or both are, T's answer is the same whichever was called more
    helpful"""
    unsafe = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [1, 0]])
    _judge(labels_needed, f(unsafe), [1, 0, 0, 0, 1, 0])


def interaction(f):
    """half the difference between the second lever's effect in the lower row and in the upper
    one"""
    _judge(interaction, f(np.array([[0.61, 0.02], [0.05, 0.01]])), 0.275)


def margin_optimum(f):
    """the margin asks for delta more from safe over unsafe, so it is a reward: r - delta where c >
    0"""
    logp, r, c = _tables(seed=5)
    wanted = np.exp(optimum.lagrangian_optimal(logp, r, c > 0, lam=2.0, beta=0.5))
    _judge(margin_optimum, f(logp, r, c, 2.0, 0.5), wanted)


def win_rate(f):
    """the share of prompts with the higher score, plus half the share of equal ones"""
    mine, other = np.array([1.0, 2.0, 0.5, 3.0, -1.0]), np.array([0.0, 2.0, 1.5, 1.0, -1.0])
    _judge(win_rate, f(mine, other), 0.6)


def true_share(f):
    """measured = h (1 - false alarm) + (1 - h) missed: solve for h"""
    _judge(true_share, f(0.69, 0.1, 0.2), 0.7)


def clustered_error(f):
    """sum the deviations of each prompt, square these sums, add them up; root, over N"""
    values, prompts = np.array([1.0, 1.0, 0.0, 0.0, 1.0]), np.array([0, 0, 1, 1, 2])
    sums = np.array([0.8, -1.2, 0.4])  # of the deviations from the mean, by prompt
    _judge(clustered_error, f(values, prompts), np.sqrt((sums**2).sum()) / 5, name="standard error")


def _answers(seed):
    """Log-probs of whole answers [3, 5], far from normalised."""
    return np.random.default_rng(seed).normal(-40.0, 8.0, size=(3, 5))


def restriction(f):
    """subtract the log of the sum of exponentials of each row; e to the -40 needs no table of its
    own: take the largest out first"""
    logp = _answers(0)
    logp[-1, -1] = -np.inf  # the last prompt has one answer less
    _judge(restriction, f(logp), optimum.normalise(logp))


def log_ratio_difference(f):
    """log theta minus log ref of answer i, minus the same of answer j: whole or restricted, the
    normalisers cancel"""
    theta, ref = _answers(1), _answers(2)
    wanted = (theta - ref)[:, 0] - (theta - ref)[:, 2]
    whole, own = f(theta, ref, 0, 2), f(optimum.normalise(theta), optimum.normalise(ref), 0, 2)
    _judge(log_ratio_difference, [whole, own], np.hstack([wanted, wanted]))


def change_of_mass(f):
    """log of the sum of exponentials of a row, of theta minus that of ref"""
    theta, ref = _answers(1), _answers(2)
    wanted = np.logaddexp.reduce(theta, axis=1) - np.logaddexp.reduce(ref, axis=1)
    _judge(change_of_mass, f(theta, ref), wanted)
