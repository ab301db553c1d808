"""Evaluation: exact in the language world, pair accuracy on real text.

In the world every response is enumerated, so reward, cost, P(unsafe), KL and the leak (the mass
that a policy puts outside the grammar) have no sampling noise. Metrics are over the grammar,
renormalised, and the leak stands beside them, because renormalising hides it.
"""

from dataclasses import dataclass

import numpy as np

from . import intervals
from .logprobs import reference_logprobs, trie_logprobs
from .pairs import chosen_rejected
from .policy import at_work
from .world import optimum


@dataclass(frozen=True)
class Exact:
    """Log-probs of all responses to P prompts: `logp` [P, R] renormalised, `leak` [P], `prompts`
    [P] ids."""

    logp: np.ndarray
    leak: np.ndarray
    prompts: np.ndarray


def exact(policy, prompts):
    """Enumerate a policy's responses to the given prompt ids: an `Exact`."""
    if policy.grammar is None:
        raise ValueError(
            "model: exact evaluation needs the world's grammar; on real text use pair_margins"
        )
    paths, prompts = policy.grammar.paths, np.asarray(prompts)
    nodes = trie_logprobs(policy, prompts)
    raw = np.array(
        [np.where(paths >= 0, nodes[x][paths], 0.0).sum(axis=1) for x in prompts.tolist()]
    )
    mass = np.exp(raw).sum(axis=1)
    return Exact(optimum.normalise(raw), 1.0 - mass, prompts)


def metrics(theta, ref, world, *, target=None):
    """The kit's standard quantities of an `Exact` policy against the reference's (same prompts), a
    dict. `world` may be answer sets of a real model (`real/answer_sets.py`), too.

    `target` is the log-prob table of the method's own optimum; it adds `kl_opt` and `tv_opt`. Where
    the optimum gives some responses no mass at all, kl_opt is the finite direction KL(optimum ||
    theta).
    """
    x, logp = theta.prompts, theta.logp
    reward, cost = world.reward[x], world.cost[x]
    benign = np.array([world.prompts[i].intent == "benign" for i in x])
    out = {
        "reward": optimum.expect(logp, reward),
        "cost": optimum.expect(logp, cost),
        "unsafe": optimum.expect(logp, cost > 0),
        "kl_ref": optimum.kl(logp, ref.logp),
        "frontier_gap": optimum.frontier_gap(logp, ref.logp, reward),
        "leak": float(theta.leak.mean()),
    }
    if benign.any():
        refuses = np.broadcast_to(world.refuses, world.reward.shape)[x]
        out["benign_refusal"] = optimum.expect(logp[benign], refuses[benign])
    if target is not None:
        finite = np.isfinite(target[np.isfinite(logp)]).all()
        out["kl_opt"] = optimum.kl(logp, target) if finite else optimum.kl(target, logp)
        out["tv_opt"] = optimum.total_variation(logp, target)
    return out


def pair_margins(policy, reference, tokens):
    """Implicit reward margins over beta: full log-ratio of chosen minus rejected (nats), float64
    [N].

    A margin within rounding (1e-9 in float64, 1e-5 below) is 0, so that it counts as the tie that
    it is.
    """
    with at_work(policy, reference.device):
        theta, ref = (reference_logprobs(p, tokens) for p in (policy, reference))
    margins = (
        _sums(theta.chosen) - _sums(theta.rejected) - (_sums(ref.chosen) - _sums(ref.rejected))
    )
    noise = 1e-9 if theta.chosen[0].dtype == np.float64 else 1e-5
    return np.where(np.abs(margins) <= noise, 0.0, margins)


def _sums(rows):
    return np.array([row.sum(dtype=float) for row in rows])


def accuracy(margins, *, prompts=None, against=None, same_pairs=False):
    """(share of pairs ordered rightly, low, high, n): `margins` is one array a seed; a tie counts
    half.

    The 95 % interval is over prompts (`intervals.over_prompts`), n counts pairs: those of all seeds
    together, or, where every seed has the `same_pairs`, the hits averaged over seeds. `prompts`
    names the prompt of every pair, one list a seed, or one list for all; without it each pair is
    its own. With `against` (margins of another method) it is the difference of the two shares,
    paired.
    """
    hit, bounds = _hits(margins, same_pairs), intervals.SHARE
    if against is not None:
        hit, bounds = hit - _hits(against, same_pairs), intervals.DIFFERENCE
    if prompts is not None:
        prompts = list(prompts)
        one_list = len(prompts) == 0 or isinstance(prompts[0], str) or np.ndim(prompts[0]) == 0
        seeds = [prompts] * len(margins) if one_list else prompts
        prompts = list(seeds[0]) if same_pairs else [x for of_seed in seeds for x in of_seed]
    return intervals.over_prompts(hit, prompts, bounds=bounds)


def _hits(margins, same_pairs):
    hits = [np.where(np.asarray(m) == 0, 0.5, np.asarray(m) > 0) for m in margins]
    return np.mean(hits, axis=0) if same_pairs else np.concatenate(hits)


def bag_of_words(train, test):
    """Margins [N] of a linear model on word counts (scikit-learn): the baseline that any text model
    must beat.

    A logistic regression on the difference of the two responses' TF-IDF vectors, chosen minus
    rejected.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if len(train) < 2:
        return np.zeros(len(test))
    vectors = TfidfVectorizer(sublinear_tf=True, min_df=2 if len(train) > 50 else 1).fit(
        [*train.response_0, *train.response_1]
    )

    def gap(table):
        both = chosen_rejected(table, table.response_0, table.response_1)
        chosen, rejected = (vectors.transform(texts) for texts in both)
        return chosen - rejected

    x = gap(train)
    sign = np.where(np.arange(x.shape[0]) % 2, 1.0, -1.0)
    model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(
        x.multiply(sign[:, None]).tocsr(), sign
    )
    return np.round(model.decision_function(gap(test)), 6)  # responses with equal counts tie
