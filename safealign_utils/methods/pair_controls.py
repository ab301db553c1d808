"""Controls for the selection of pairs: what DOG-DPO is held against, at the same budget of k pairs.

Every function returns k different rows, int64 [k]. `u` [N, D] are the pairs' directions
(`dog.directions`), of unit norm, float32 or float64. Of equals the first row wins; numbers are
rounded first, so that noise does not decide. The three orderings by margin or loss contradict each
other.
"""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from ..engine.streams import generator
from .dog import check_count, check_finite, greedy_log_det, split_budget
from .selective import DIGITS

WIDTH = 64  # gains that facility location computes at once


def random_pairs(n, k, *, seed):
    """k of n pairs at random."""
    check_count(k, n)
    return generator(seed, "pair controls").permutation(n)[:k]


# ---------------------------------------------------------------- what covers the directions
def plain_log_det(u, k, *, ridge=1.0):
    """DOG-D without anchor and residuals: greedy log det over the directions themselves."""
    return greedy_log_det(u, k, ridge=ridge).rows


def k_means(u, k, *, seed):
    """The pairs nearest to the k centres of k-means; where one is taken, the next nearest."""
    check_count(k, len(u))
    check_finite(u)
    with warnings.catch_warnings(), threadpool_limits(1):  # its sums depend on the threads
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different directions than k
        centres = KMeans(k, n_init=1, random_state=seed).fit(u.cpu().numpy()).cluster_centers_
    square, rows = u.square().sum(1), []
    for centre in torch.from_numpy(centres).to(u):
        distance = torch.round(square - 2 * (u @ centre), decimals=DIGITS[u.dtype])
        distance[rows] = torch.inf
        rows.append(int(distance.argmin()))
    return np.array(rows)


@torch.no_grad()
def facility_location(u, k):
    """Greedy maximum of the sum over pairs of their cosine to the nearest pick, at least 0 each.

    Exact: gains only fall, so an old one is an upper bound, and only bounds above the best gain are
    computed again, WIDTH at a time. Memory O(N WIDTH), for N up to about 10,000.
    """
    check_count(k, len(u))
    check_finite(u)
    u = torch.nn.functional.normalize(u, dim=1)
    covered, bound, rows = u.new_zeros(len(u), 1), u.new_zeros(len(u)), []

    def gain(columns):
        return (u @ u[columns].T - covered).clamp_min_(0).sum(0)

    for part in torch.arange(len(u), device=u.device).split(WIDTH):
        bound[part] = gain(part)
    tolerance = 10.0 ** -DIGITS[u.dtype] * float(bound.max())
    for _ in range(k):
        fresh = torch.zeros(len(u), dtype=torch.bool, device=u.device)
        near = bound >= bound.max() - tolerance
        while not fresh[near].all():
            old = bound.masked_fill(fresh, -torch.inf).topk(min(WIDTH, len(u))).indices
            bound[old], fresh[old] = torch.minimum(bound[old], gain(old)), True
            near = bound >= bound.max() - tolerance
        rows.append(_first_best(bound, tolerance))
        covered = torch.maximum(covered, u @ u[rows[-1:]].T)
        bound[rows[-1]] = -torch.inf
    return np.array(rows)


@torch.no_grad()
def k_centre(u, k):
    """Farthest first: the first pair, then always the one farthest (Euclidean) from all picks."""
    check_count(k, len(u))
    check_finite(u)
    square, rows = u.square().sum(1), [0]
    distance = torch.full_like(square, torch.inf)
    tolerance = 10.0 ** -DIGITS[u.dtype] * float(square.max())
    for _ in range(k - 1):
        distance = torch.minimum(distance, square + square[rows[-1]] - 2 * (u @ u[rows[-1]]))
        distance[rows[-1]] = -torch.inf
        rows.append(_first_best(distance, tolerance))
    return np.array(rows)


def _first_best(values, tolerance):
    """The first row of `values` [N] within `tolerance` of the largest."""
    return int(torch.nonzero(values >= values.max() - tolerance)[0, 0])


# ---------------------------------------------------------------- orderings
def by_margin(margins, k, *, order):
    """The k pairs with the "largest" margins (BeeS, 2502.14560) or the "smallest" (2508.04149).

    `margins` float [N], signed: chosen minus rejected, of an implicit or an external reward. Raises
    ValueError for another order.
    """
    if order not in ("largest", "smallest"):
        raise ValueError(f"order={order!r}: choose largest or smallest")
    return _lowest(-np.asarray(margins) if order == "largest" else margins, k)


def easiest_half(losses, k, *, seed):
    """k pairs at random from the half with the lowest held-out loss (Gao et al., 2502.09650).

    The k lowest of all where k exceeds the half. `losses` float [N]: of each pair under a policy
    that was trained without it.
    """
    half = _lowest(losses, max(k, (len(losses) + 1) // 2))
    return half if len(half) == k else half[random_pairs(len(half), k, seed=seed)]


def _lowest(values, k):
    """Rows of the k lowest of N values, lowest first. Raises ValueError for NaN."""
    check_count(k, len(values))
    for i in np.flatnonzero(np.isnan(values))[:1]:
        raise ValueError(f"values: NaN at pair row {i} has no place in an order; drop the pair")
    return np.argsort(np.round(np.asarray(values, dtype=float), 9), kind="stable")[:k]


def stratified(groups, k, *, seed):
    """Oracle: equally many pairs at random from each of the `groups` [N], such as the categories.

    What a small group cannot give is spread over the others.
    """
    groups, quota = np.asarray(groups), split_budget(k, groups, "equal")
    order = random_pairs(len(groups), len(groups), seed=seed)
    return np.concatenate([order[groups[order] == g][:n] for g, n in zip(np.unique(groups), quota)])
