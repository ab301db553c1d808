"""The one loss minimised exactly: a policy that is a table, full batch, float64.

What training would end at with every pair of responses, the exact label probabilities and no
network in between. It separates the statement of a loss (where is its optimum?) from the work of a
network.
"""

import numpy as np
import torch
from scipy.optimize import minimize

from ..loss import preference_loss

OPTIONS = {"maxiter": 5000, "maxfun": 10_000, "ftol": 0.0, "gtol": 1e-12, "maxcor": 50}


def all_pairs(n):
    """Every unordered pair of n responses: two int arrays [n (n - 1) / 2]."""
    return np.triu_indices(n, k=1)


def fit(logp_ref, p, *, beta, margin=0.0, weight=1.0):
    """Minimise the one loss over all pairs of the responses to one prompt; returns log-probs [R].

    `p` [K] is the probability that the first response of each of `all_pairs(R)` wins, `margin` [K]
    (with a hard label only) by how much, `weight` [K] >= 0 how often the pair is seen: 0 leaves it
    out. Where the labels are consistent (Bradley-Terry) the optimum is the same for every weight
    that links all responses; that it is the same for every SafeDPO margin is arXiv 2505.20065,
    Prop. 4.4.
    """
    first, second = (torch.from_numpy(i) for i in all_pairs(len(logp_ref)))
    shape = np.shape(p)
    p, margin, weight = (
        torch.tensor(np.broadcast_to(v, shape), dtype=torch.float64) for v in (p, margin, weight)
    )
    weight = weight / weight.sum()

    def loss_and_slope(x):
        logratio = torch.tensor(x, requires_grad=True)
        pairs = logratio[first, None], logratio[second, None]  # a response is one token
        loss = (weight * preference_loss(*pairs, beta=beta, p=p, margin=margin).loss).sum()
        loss.backward()
        return loss.item(), logratio.grad.numpy()

    start = np.zeros(len(logp_ref))
    found = minimize(loss_and_slope, start, jac=True, method="L-BFGS-B", options=OPTIONS)
    z = logp_ref + found.x
    return z - np.logaddexp.reduce(z)
