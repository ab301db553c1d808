"""Baselines of the SafeDPO and C-DPO papers: which lever of the one loss each of them moves.

*Winner*: DPO-helpful and DPO-harmless (`pairs.label`), a fixed lambda, MoCAN and PeCAN
(`cdpo.relabel`). *Pairs*: DPO-safebetter. *Margin*: MODPO. *Reference*: SACPO's second stage. BFPO
and BSO set a margin and have another link, a function link(z, beta) of the same logit z [B], which
they hand to `train.align`.
"""

import numpy as np

from ..pairs import chosen_rejected
from ..world import optimum
from .cdpo import relabel
from .safedpo import transform, unsafe_labels, with_margin

BFPO = dict(b1=3.0, b3=0.5, alpha=0.5)  # b3 = 1 / (b1 - 1)
SBA = dict(power=0.2, scale=4.0, margin=30.0)


def dpo_safebetter(table):
    """Drop the helpfulness pairs whose winner is unsafe (SafeDPO's baseline, 2505.20065).

    Raises ValueError where nothing is left.
    """
    safe = ~unsafe_labels(table)[0]
    if not safe.any():
        raise ValueError(
            f"pairs: the winners of all {len(table)} are unsafe, so DPO-safebetter has none left"
        )
    return table[safe].reset_index(drop=True)


# ---------------------------------------------------------------- two stages, one multiplier
def safety_labels(table, *, seed=0):
    """Winners by -c alone, drawn by coin flips: SACPO's second data set, from the column cost_k."""
    safety = table.assign(**{f"reward_{k}": -table[f"cost_{k}"] for k in (0, 1)})
    return relabel(safety, 0.0, by="coin", seed=seed)


def sacpo(train, helpful, safety, *, beta, lam):
    """SACPO (2404.11049): DPO for helpfulness, then for safety with the first policy as reference.

    The second stage's temperature is beta / lam. `train(table, reference=None, **changes)` returns
    a `Trained`; so does this. Raises ValueError where lam is not above 0.
    """
    if not lam > 0:
        raise ValueError(
            f"lam={lam}: SACPO's second stage needs a multiplier above 0; at 0 it is plain DPO"
        )
    first = train(helpful)
    return train(safety, reference=first.policy, beta=beta / lam)


def mix(helpful, safe, q):
    """P-SACPO (2404.11049): a policy with the weights (1 - q) helpful + q safe.

    Raises ValueError unless 0 <= q <= 1.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q={q}: the share of the second policy's weights, between 0 and 1")
    out = helpful.merged().copy()
    own, other = out.model.state_dict(), safe.merged().model.state_dict()
    out.model.load_state_dict({k: (1 - q) * v + q * other[k] for k, v in own.items()})
    return out


def mocan_lambda(logp_ref, reward, cost, *, beta, cost_limit=0.0):
    """MoCAN's multiplier (2405.19544), found before any training; all tables [P, R].

    It is the minimiser over lambda >= 0 of the convex dual
    f(lambda) = beta E_x log E_ref exp((r - lambda (c - cost_limit)) / beta), and so lambda*. For n
    samples a prompt in place of all responses `logp_ref` is -log n everywhere.
    """
    return optimum.lambda_star(logp_ref, reward, cost, beta=beta, cost_limit=cost_limit)


def implicit_scores(policy_logp, logp_ref, *, beta, mean=None):
    """PeCAN's scores [P, R] (2405.19544) of a DPO policy: beta log(pi / pi_ref).

    They have no origin of their own: with `mean`, each prompt is shifted so that the reference's
    expectation is that number.
    """
    score = beta * (policy_logp - logp_ref)
    if mean is None:
        return score
    return score - (np.exp(logp_ref) * score).sum(axis=1, keepdims=True) + mean


# ---------------------------------------------------------------- other margins, other links
def modpo(table, lam):
    """MODPO (2310.03708) with w0 = 1, w1 = lam and margin reward -c, on helpfulness pairs [N].

    The winner must win by lam (c_l - c_w), in units of reward. The optimum is pi*_lambda.
    """
    c_w, c_l = chosen_rejected(table, table.cost_0, table.cost_1)
    return table.assign(p=1.0, margin=lam * (c_l - c_w))


def bfpo(table):
    """BFPO (2408.15313) on helpfulness pairs: margin b1 b3 s_w - b3 s_l - alpha, link `square`.

    s = 1 is safe.
    """
    s_w, s_l = (1.0 - u for u in unsafe_labels(table))
    b1, b3, alpha = BFPO["b1"], BFPO["b3"], BFPO["alpha"]
    return table.assign(p=1.0, margin=b1 * b3 * s_w - b3 * s_l - alpha)


def square(z, beta):
    """BFPO's link: (h - margin / beta)^2, as z = beta h - margin."""
    return (z / beta).square()


def bso(table, *, margin=SBA["margin"]):
    """BSO (2605.12339): SafeDPO's table with the margin C, link `sba`.

    C = 30 is quoted from a secondary source, not from the paper's own text. There a mixed pair
    starts with 2e15 times the weight of a pair of equal status (`bso_weight`), and once gradients
    are clipped nothing is left of the latter: what C = 30 shows is this setting, not the method. At
    C = 5 the factor is 202, and helpfulness is trained too (notebook 02). Raises ValueError for a
    margin below 0.
    """
    return with_margin(transform(table)[0].assign(p=1.0), margin)


def bso_weight(margin):
    """Weight of a mixed pair over one of equal status at the start, |L'(-C)| / |L'(0)| of `sba`."""
    a = SBA["power"]
    return float(np.exp((1 + a) * margin) + np.exp(-a * margin)) / 2


def sba(z, beta):
    """BSO's link with the SBA generator: [a R^(1+a) - (1+a) R^(-a) + 1] / (s a (1+a)), R = exp(-z).

    The logistic generator in its place gives SafeDPO, up to a factor. Below z = -60, where float32
    ends, the loss is constant.
    """
    z, a, s = z.clamp(min=-60), SBA["power"], SBA["scale"]
    return (a * (-(1 + a) * z).exp() - (1 + a) * (a * z).exp() + 1) / (s * a * (1 + a))
