"""Controls for the selection of pairs: what DOG-DPO has to be held against, at the same budget of k pairs.

Every function returns k different rows, int64 [k]. `u` [N, D] are the pairs' directions (`dog.directions`), of
unit norm, float32 or float64. Ties go to the lowest of `ids` [N], by default the row number; numbers are rounded
first, so that noise does not decide. The three orderings by margin or loss contradict each other.
"""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from ..engine.streams import generator
from .dog import (
    DIGITS,
    check_count,
    check_finite,
    first_best,
    greedy_log_det,
    split_budget,
    stable_ids,
)


def random_pairs(n, k, *, seed):
    """k of n pairs at random."""
    check_count(k, n)
    return generator(seed, "pair controls").permutation(n)[:k]


# ---------------------------------------------------------------- what covers the directions
def k_means(u, k, *, seed):
    """The pairs nearest to the k centres of k-means. A centre whose nearest pair is taken gets the next nearest."""
    check_count(k, len(u))
    check_finite(u)
    with (
        warnings.catch_warnings(),
        threadpool_limits(1),
    ):  # its sums depend on the number of threads
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different directions than k
        centres = KMeans(k, n_init=1, random_state=seed).fit(u.cpu().numpy()).cluster_centers_
    square, rows = u.square().sum(1), []
    for centre in torch.from_numpy(centres).to(u):
        distance = torch.round(square - 2 * (u @ centre), decimals=DIGITS[u.dtype])
        distance[rows] = torch.inf
        rows.append(int(distance.argmin()))
    return np.array(rows)


@torch.no_grad()
def facility_location(u, k, *, ids=None, width=64):
    """Greedy maximum of the sum over all pairs of their cosine to the nearest pick, negative cosines counted as 0.

    Exact: gains only fall, so one that is out of date is an upper bound, and only bounds above the best gain are
    computed anew, `width` at a time. Memory O(N width), for N up to about 10,000.
    """
    check_count(k, len(u))
    check_finite(u)
    ids, u = (
        torch.from_numpy(stable_ids(ids, len(u))).to(u.device),
        torch.nn.functional.normalize(u, dim=1),
    )
    covered, bound, rows = u.new_zeros(len(u), 1), u.new_zeros(len(u)), []
    gain = lambda columns: (u @ u[columns].T - covered).clamp_min_(0).sum(0)
    for part in torch.arange(len(u), device=u.device).split(width):
        bound[part] = gain(part)
    tolerance = 10.0 ** -DIGITS[u.dtype] * float(bound.max())
    for _ in range(k):
        fresh = torch.zeros(len(u), dtype=torch.bool, device=u.device)
        near = bound >= bound.max() - tolerance
        while not fresh[near].all():
            old = bound.masked_fill(fresh, -torch.inf).topk(min(width, len(u))).indices
            bound[old], fresh[old] = torch.minimum(bound[old], gain(old)), True
            near = bound >= bound.max() - tolerance
        rows.append(first_best(bound, ids, tolerance))
        covered = torch.maximum(covered, u @ u[rows[-1:]].T)
        bound[rows[-1]] = -torch.inf
    return np.array(rows)


@torch.no_grad()
def k_centre(u, k, *, ids=None):
    """Farthest first: starts at the lowest id, then always the pair farthest (Euclidean) from all picks so far."""
    check_count(k, len(u))
    check_finite(u)
    ids = torch.from_numpy(stable_ids(ids, len(u))).to(u.device)
    square = u.square().sum(1)
    distance, rows = torch.full_like(square, torch.inf), [int(ids.argmin())]
    tolerance = 10.0 ** -DIGITS[u.dtype] * float(square.max())
    for _ in range(k - 1):
        distance = torch.minimum(distance, square + square[rows[-1]] - 2 * (u @ u[rows[-1]]))
        distance[rows[-1]] = -torch.inf
        rows.append(first_best(distance, ids, tolerance))
    return np.array(rows)


def plain_log_det(u, k, *, ridge=1.0, ids=None):
    """DOG-D without anchor and residuals: greedy log det over the directions themselves."""
    return greedy_log_det(u, k, ridge=ridge, ids=ids).rows


# ---------------------------------------------------------------- orderings
def by_margin(margins, k, *, order, ids=None):
    """The k pairs with the "largest" margins (BeeS, 2502.14560) or the "smallest", signed (Qi et al., 2508.04149).

    `margins` float [N]: chosen minus rejected, of an implicit or an external reward.
    Raises ValueError for another order.
    """
    if order not in ("largest", "smallest"):
        raise ValueError(f"order={order!r}: choose largest or smallest")
    return _lowest(-np.asarray(margins) if order == "largest" else margins, k, ids)


def easiest_half(losses, k, *, seed, ids=None):
    """k pairs at random from the half with the lowest held-out loss (Gao et al., arXiv 2502.09650); the k lowest of
    all where k exceeds the half. `losses` float [N]: of each pair under a policy that was trained without it.
    """
    half = _lowest(losses, max(k, (len(losses) + 1) // 2), ids)
    return half if len(half) == k else half[random_pairs(len(half), k, seed=seed)]


def _lowest(values, k, ids):
    """Rows of the k lowest values (float [N], rounded to 9 digits), lowest first. Raises ValueError
    for NaN."""
    check_count(k, len(values))
    for i in np.flatnonzero(np.isnan(values))[:1]:
        raise ValueError(
            f"values: NaN at pair row {i}; NaN has no place in an order, drop the pair"
        )
    return np.lexsort((stable_ids(ids, len(values)), np.round(np.asarray(values, dtype=float), 9)))[
        :k
    ]


def stratified(groups, k, *, seed):
    """Oracle: equally many pairs at random from each of the `groups` [N], such as the true category; what a small
    group cannot give is spread over the others."""
    groups = np.asarray(groups)
    quota, order = (
        split_budget(k, groups, "equal"),
        random_pairs(len(groups), len(groups), seed=seed),
    )
    return np.concatenate([order[groups[order] == g][:n] for g, n in zip(np.unique(groups), quota)])
