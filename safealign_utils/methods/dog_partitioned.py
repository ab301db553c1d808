"""DOG-D for pools beyond one machine's memory: greedy in every part of the pool, then greedy over what they picked.

The two stages are GreeDi's (Mirzasoleiman et al., NIPS 2013; the longer version is arXiv 1411.0541). Anchor and
residuals come from sums over pairs, so adding up the parts' own is exact; only the greedy loses by the parts. What
it loses is measured by `tests/benchmarks/selection.py --parts`.
"""

from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import torch

from .dog import check_count, check_subspaces, features, greedy_log_det, moments, project, subspaces


@dataclass(frozen=True)
class PartitionedPicks:
    """`ids` int64 [k] in order of choice, the `part` each lies in, int [k], and what it added, `gains` float64 [k]."""

    ids: np.ndarray
    part: np.ndarray
    gains: np.ndarray

    @property
    def value(self):
        """log det(I + F_S F_S^T / ridge) of the picks, in nats."""
        return float(self.gains.sum())


def partitioned_dog_d(
    parts,
    k,
    *,
    client=None,
    per_part=None,
    ridge=1.0,
    weights=(1.0, 1.0),
    anchor_rank=4,
    residual_rank=16,
    outside="others",
    span=0.9,
):
    """DOG-D: k of all pairs in P `parts`, as `PartitionedPicks`. The other options are those of `coordinates`.

    A part is a function without arguments that loads its own (u [n, D], source [n], ids int [n]); it is called twice,
    here, one part after another, or by the workers of `client` (a `distributed.Client`), and then must pickle. Ids
    are unique over all parts. Every part offers `per_part` pairs, by default k, as GreeDi does. Fewer cost little
    while they are three times the width r + J q of the features, and much where they are a handful. The better of
    the pick from all offers and the best part's own is returned.
    Memory at one place: one part, J moments [D, D], and the offers' features, P x per_part rows.
    Raises ValueError for no parts, k outside [1, N], offers that cannot reach k, ids offered twice, and as
    `coordinates` does.
    """
    if not len(parts):
        raise ValueError("parts=[]: give at least one function that loads (u, source, ids)")
    submit = (
        (lambda work, *given: work(*given))
        if client is None
        else partial(client.submit, pure=False)
    )
    gather = (lambda results: results) if client is None else client.gather
    options = anchor_rank, residual_rank, outside, span
    total = reduce(partial(submit, _add), (submit(_moments, load, options) for load in parts))
    check_count(k, gather(submit(_count, total)))
    found = submit(_subspaces, total, options)
    offers = [
        submit(_offer, load, found, k if per_part is None else per_part, ridge, weights)
        for load in parts
    ]
    return gather(submit(_best, offers, k, ridge, per_part))


def _moments(load, options):
    """{name: (sum of u^T u [D, D], n)} of one part."""
    u, source, _ = load()
    check_subspaces(u.shape[1], *options)
    return {name: (total, n) for name, total, n in zip(*moments(u, source))}


def _add(one, other):
    both = lambda name: zip(*[each[name] for each in (one, other) if name in each])
    return {name: tuple(map(sum, both(name))) for name in {**one, **other}}


def _count(total):
    return sum(n for _, n in total.values())


def _subspaces(total, options):
    names = np.array(sorted(total))
    return subspaces(names, *zip(*[total[name] for name in names]), *options)


def _offer(load, found, count, ridge, weights):
    """(features float [m, d], ids [m], gains [m]) of the m <= `count` pairs that the greedy picks in one part."""
    u, source, ids = load()
    F = features(project(u, source, found), weights=weights)
    picks = greedy_log_det(F, min(count, len(F)), ridge=ridge, ids=ids)
    return F[torch.from_numpy(picks.rows).to(F.device)], np.asarray(ids)[picks.rows], picks.gains


def _best(offers, k, ridge, per_part):
    """The greedy over all offers, or the best part's own, as `PartitionedPicks`."""
    F, ids = torch.cat([o[0] for o in offers]), np.concatenate([o[1] for o in offers])
    part = np.repeat(np.arange(len(offers)), [len(o[1]) for o in offers])
    if len(ids) < k:
        raise ValueError(
            f"per_part={per_part}: {len(offers)} parts offer {len(ids)} pairs; raise it or lower k={k}"
        )
    union = greedy_log_det(F, k, ridge=ridge, ids=ids)
    own = [o[2][:k].sum() if len(o[1]) >= k else -np.inf for o in offers]
    best = int(np.argmax(own))
    if own[best] > union.gains.sum():
        return PartitionedPicks(offers[best][1][:k], np.full(k, best), offers[best][2][:k])
    return PartitionedPicks(ids[union.rows], part[union.rows], union.gains)
