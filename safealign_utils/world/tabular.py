"""The one loss minimised exactly: a policy that is a table, full batch, float64.

What training would end at with every pair of responses, the exact label probabilities and no network in
between. It separates the statement of a loss (where is its optimum?) from the work of a network.
"""

import numpy as np
import torch
from scipy.optimize import minimize

from ..loss import preference_loss


def all_pairs(n):
    """Every unordered pair of n responses: two int arrays [n (n - 1) / 2]."""
    return np.triu_indices(n, k=1)


def fit(logp_ref, p, *, beta, margin=None, weight=None, steps=5000):
    """Minimise the one loss over all pairs of the responses to one prompt; returns log-probs [R].

    `p` [K] is the probability that the first response of each of `all_pairs(R)` wins, `margin` [K] (with
    a hard label only) by how much, `weight` [K] >= 0 how often the pair is seen. A weight of 0 leaves a
    pair out. Where the labels are consistent (Bradley-Terry) the optimum is the same for every weight that
    links all responses; that it is the same for every SafeDPO margin is arXiv 2505.20065, Prop. 4.4.
    """
    first, second = (torch.from_numpy(i) for i in all_pairs(len(logp_ref)))
    p = torch.from_numpy(np.asarray(p, dtype=float))
    margin = (
        torch.zeros_like(p) if margin is None else torch.from_numpy(np.asarray(margin, dtype=float))
    )
    weight = (
        torch.ones_like(p) if weight is None else torch.from_numpy(np.asarray(weight, dtype=float))
    )
    weight = weight / weight.sum()

    def loss_and_slope(x):
        logratio = torch.tensor(x, requires_grad=True)
        pairs = logratio[first, None], logratio[second, None]  # a response is one token
        loss = (weight * preference_loss(*pairs, beta=beta, p=p, margin=margin).loss).sum()
        loss.backward()
        return loss.item(), logratio.grad.numpy()

    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 0.0, "gtol": 1e-12, "maxcor": 50}
    found = minimize(
        loss_and_slope, np.zeros(len(logp_ref)), jac=True, method="L-BFGS-B", options=options
    )
    z = logp_ref + found.x
    return z - np.logaddexp.reduce(z)
