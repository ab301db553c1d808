"""DOG-DPO (Nian et al., arXiv 2606.07678): the pairs lever. Which 11 % of the pairs are worth training on?

Established, from its abstract: no training and no teacher; a pair is a direction in the model's representation
space; a *global anchor* subspace and *data-set-specific residual* subspaces; the subset maximises a
diversity-based coverage; 11 % of the pairs recover most of the full data's safety gain. A co-author's page shows
two variants, DOG (a Pareto frontier) and DOG-D (spread). Formulas and code are not available, so this is a
*labelled reconstruction*. These choices are ours:

0. Exact copies (same prompt, same two responses) are merged before anything is weighed, for every
method alike. 1. u_i = hidden state of the reference, mean over the response's tokens, chosen minus
rejected, unit norm. 2. Anchor A: the top r = 4 eigenvectors of the mean over data sets of u^T u /
n_j: every data set weighs the same. 3. Residual of data set j: what lies outside the leading span
(90 % of the trace) of the *other* data sets' mean
   moment; B_j: its top q = 16 right singular vectors. The literal reading (`outside="anchor", residual_rank=6`)
   is shipped too, because its failure is shown: what the data sets share beyond A then fills B_j.
4. Coordinates a_i = A^T u_i and b_i = B_j^T u_i; f_i = [sqrt(w_a) a_i ; sqrt(w_b) b_i in the block of data set j].
5. DOG-D: greedy maximum of log det(I + F_S F_S^T / ridge) over the k rows S of F.
   DOG: non-dominated sorting on the energies |a_i|^2 and |b_i|^2, both to be large.
6. k = round(0.11 N), over all data sets at once or split among them. Of equals the lowest id wins.
N pairs, D hidden width, J data sets; d = r + J q is the width of F. Nothing here is N x N.
"""

import sys
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..engine import cache
from ..logprobs import attention_bias

DIGITS = {torch.float64: 9, torch.float32: 5}  # what rounding noise does not reach
BLOCK = 16  # batches of one entry of the cache


def check_finite(u, rows=None, name="u"):
    """Refuse directions (or features) u [N, D] that hold NaN or infinity; ValueError names the
    pairs' row numbers."""
    bad = torch.nonzero(~u.isfinite().all(dim=1))[:, 0].cpu().numpy()
    if len(bad):
        rows = np.sort(bad if rows is None else np.asarray(rows)[bad]).tolist()
        few = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise ValueError(
            f"{name}: hold numbers that are not finite at pair rows {few} ({len(rows)} in all); drop those pairs, "
            "or look for the hidden states that overflow"
        )


@torch.no_grad()
def directions(policy, tokens, *, layer=-1, pooling="mean", normalise=True, batch_size=64):
    """u [N, D]: pooled hidden states of each pair (`pairs.TokenPairs`), chosen minus rejected, on the policy's device.

    `layer` 0 is the embeddings, -1 the last layer with its final norm. `pooling` is the mean over the response's
    tokens or the last of them, the end-of-sequence token left out; a response of nothing else takes the
    prompt's last place. float64 stays float64, all else gives float32. A difference within rounding is 0.
    Blocks are kept on disk, keyed by weights, tokens, batches, layer, pooling and this code.
    Raises ValueError for a layer that the network does not have, another pooling, and states that
    are not finite.
    """
    depth = policy.model.config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(
            f"layer={layer}: the network has layers 0 to {depth}, or {-depth - 1} to -1 from the end"
        )
    if pooling not in ("mean", "last"):
        raise ValueError(f"pooling={pooling!r}: choose mean or last")
    order = np.argsort(
        [len(x) for x in tokens.prompts] + tokens.lengths_w + tokens.lengths_l, kind="stable"
    )
    batches = np.array_split(order, -(-len(tokens) // batch_size))  # of like length: little padding
    blocks, u = [batches[i : i + BLOCK] for i in range(0, len(batches), BLOCK)], None
    with tqdm(
        total=len(tokens),
        desc="directions",
        unit="pair",
        disable=not sys.stderr.isatty(),
        leave=False,
    ) as bar:
        for block in blocks:
            rows, found = (
                np.concatenate(block),
                _block(policy, tokens, block, layer % (depth + 1), pooling, bar),
            )
            if u is None:
                u = found.new_empty(len(tokens), found.shape[1], device=policy.device)
            u[torch.from_numpy(rows).to(u.device)] = found.to(u.device)
    return u.div_(u.norm(dim=1, keepdim=True).clamp_min_(1e-12)) if normalise else u


def _block(policy, tokens, batches, layer, pooling, bar):
    """Differences [n, D] of some batches (lists of row numbers), read from the cache where they are there."""
    take = lambda things: [[things[i] for i in rows] for rows in batches]
    texts = [take(side) for side in (tokens.prompts, tokens.chosen, tokens.rejected)]
    way = dict(kind=type(tokens), layer=layer, pooling=pooling)
    key = cache.key("directions", policy=policy, texts=texts, **way)
    stored = cache.load("directions", key)
    if stored is not None:
        bar.update(sum(map(len, batches)))
        return torch.from_numpy(stored[0]["u"])
    parts = []
    for rows in batches:
        parts.append(_batch(policy, tokens, rows, layer, pooling))
        bar.update(len(rows))
    u = torch.cat(parts)
    check_finite(u, np.concatenate(batches))
    cache.store("directions", key, {"u": u.cpu().numpy()})
    return u


def _batch(policy, tokens, rows, layer, pooling):
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.bf16):
        hidden = _layer(policy.model.eval(), tokens.batch(rows, policy).to(policy.device), layer)
    lengths = np.stack([tokens.lengths_w[rows], tokens.lengths_l[rows]], 1).ravel()
    pooled = [_pool(states, pooling) for states in hidden.split(lengths.tolist())]
    w, l = torch.stack(pooled[0::2]), torch.stack(pooled[1::2])
    noise = 10.0 ** -DIGITS[w.dtype] * w.norm(dim=1, keepdim=True)
    return torch.where((w - l).norm(dim=1, keepdim=True) > noise, w - l, 0.0)


def _layer(model, batch, layer):
    """Hidden states [K, D] of one layer at the `source` places of a `Packed` batch, in float32 or float64."""
    bias = attention_bias(model, batch)
    inputs = dict(
        input_ids=batch.ids, attention_mask=bias, position_ids=batch.positions, use_cache=False
    )
    inner = (
        layer < model.config.num_hidden_layers
    )  # the last is there anyway; all of them fill a GPU
    out = model.base_model(**inputs, output_hidden_states=inner)
    hidden = (out.hidden_states[layer] if inner else out.last_hidden_state).flatten(0, 1)
    return hidden[batch.source].to(torch.promote_types(hidden.dtype, torch.float32))


def _pool(states, pooling):
    """[D] from the states [n, D] at the prompt's last place and at a response's n - 1 tokens before its end."""
    own = states[1:] if len(states) > 1 else states
    return own.mean(0) if pooling == "mean" else own[-1]


def merge_copies(table):
    """(the table without exact copies, the first of each kept; how often each stood there, int
    [N']).

    Copies have the same prompt and two responses, in any order and data set. No label is read: the
    first row's stay.
    """
    turned = (table.response_0 > table.response_1).to_numpy()
    one, other = (np.where(t, table.response_1, table.response_0) for t in (turned, ~turned))
    number, _ = pd.factorize(pd.Series(list(zip(table.prompt, one, other))))
    _, kept, counts = np.unique(number, return_index=True, return_counts=True)
    return table.iloc[kept].reset_index(drop=True), counts


# ---------------------------------------------------------------- anchor and residuals
@dataclass(frozen=True)
class Coordinates:
    """Where N pairs lie: `anchor` [N, r] and `residual` [N, q] (in the basis of the pair's own data set).

    `names` are the J data sets, sorted, `block` int [N] the number of the pair's own. `anchor_values` [D]: eigenvalues
    of the mean moment; `singular`: J times [D], singular values of the residual over sqrt(n_j).
    """

    anchor: torch.Tensor
    residual: torch.Tensor
    block: np.ndarray
    names: tuple
    anchor_values: np.ndarray
    singular: list

    @property
    def energies(self):
        """|a_i|^2 and |b_i|^2, float64 [N, 2], rounded (9 digits, 5 in float32) so that ties are exact."""
        e = torch.stack([self.anchor.square().sum(1), self.residual.square().sum(1)], 1)
        return np.round(e.cpu().numpy().astype(float), DIGITS[e.dtype])


@dataclass(frozen=True)
class Subspaces:
    """`anchor` [D, r] and the J bases `residuals`, each [D, at most q], in columns; the rest as in `Coordinates`."""

    anchor: torch.Tensor
    residuals: list
    names: tuple
    anchor_values: np.ndarray
    singular: list


def coordinates(u, source, *, anchor_rank=4, residual_rank=16, outside="others", span=0.9):
    """The `Coordinates` of u [N, D] (float32 or float64) in data sets named by `source` [N].

    `outside="others"`: a residual lies outside the leading eigenvectors of the other data sets' mean moment that
    hold `span` of its trace; a single data set has no others, and takes what lies outside A. "anchor": outside A,
    the literal reading. Zeros fill what is left of q dimensions. Moments: float64 up to D = 1024, float32 above.
    Raises ValueError for ranks outside [0, D], another `outside` or span, and directions that are
    not finite.
    """
    check_subspaces(u.shape[1], anchor_rank, residual_rank, outside, span)
    found = subspaces(*moments(u, source), anchor_rank, residual_rank, outside, span)
    return project(u, source, found)


def check_subspaces(D, anchor_rank, residual_rank, outside, span):
    for name, rank in (("anchor_rank", anchor_rank), ("residual_rank", residual_rank)):
        if not 0 <= rank <= D:
            raise ValueError(
                f"{name}={rank}: a subspace of D = {D} dimensions has between 0 and {D}"
            )
    if outside not in ("others", "anchor") or not 0 < span <= 1:
        raise ValueError(
            f"outside={outside!r}, span={span}: choose others or anchor, and a share above 0, at most 1"
        )


@torch.no_grad()
def moments(u, source):
    """What the subspaces are made of: (names of the J data sets, their sums of u^T u, J times [D, D], their sizes)."""
    names, block = np.unique(np.asarray(source), return_inverse=True)
    if len(block) != len(u):
        raise ValueError(f"source: {len(block)} names for {len(u)} directions; give one a pair")
    check_finite(u)
    rows = [torch.from_numpy(np.flatnonzero(block == j)).to(u.device) for j in range(len(names))]
    dtype = torch.float64 if u.shape[1] <= 1024 else torch.float32
    gram = lambda x: x.T @ x
    return (
        names,
        [sum(gram(u[p].to(dtype)) for p in r.split(8192)) for r in rows],
        [len(r) for r in rows],
    )


@torch.no_grad()
def subspaces(names, sums, sizes, anchor_rank, residual_rank, outside, span):
    """The `Subspaces` of `moments`; the rest are options of `coordinates`."""
    moment = torch.stack([s / n for s, n in zip(sums, sizes)])
    values, vectors = _eigen(moment.mean(0))
    A, bases, singular = vectors[:, :anchor_rank], [], []
    for j in range(len(names)):
        V = A
        if outside == "others" and len(names) > 1:
            energy, V = _eigen((moment.sum(0) - moment[j]) / (len(names) - 1))
            V = V[:, : int((energy.cumsum(0) < span * (1 - 1e-9) * energy.sum()).sum()) + 1]
        P = torch.eye(len(V), dtype=V.dtype, device=V.device) - V @ V.T
        left, B = _eigen(P @ moment[j] @ P)
        rank = int(
            (left > 100 * torch.finfo(left.dtype).eps * moment[j].trace()).sum()
        )  # the rest may lie in V
        bases.append(B[:, : min(residual_rank, rank)])
        singular.append(left.sqrt().cpu().numpy().astype(float))
    return Subspaces(A, bases, tuple(names), values.cpu().numpy().astype(float), singular)


@torch.no_grad()
def project(u, source, found):
    """The `Coordinates` of u [N, D] in `Subspaces` that know every name in `source` [N]."""
    block = np.searchsorted(found.names, np.asarray(source))
    residual = u.new_zeros(len(u), max(B.shape[1] for B in found.residuals))
    for j, B in enumerate(found.residuals):
        mine = torch.from_numpy(np.flatnonzero(block == j)).to(u.device)
        residual[mine, : B.shape[1]] = (u @ B.to(u.dtype))[mine]
    return Coordinates(
        u @ found.anchor.to(u.dtype),
        residual,
        block,
        found.names,
        found.anchor_values,
        found.singular,
    )


def _eigen(moment):
    """Eigenvalues [D], largest first, and eigenvectors [D, D] in columns of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((moment + moment.T) / 2)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def features(coordinates, *, weights=(1.0, 1.0)):
    """F [N, r + J q]: sqrt(w_a) a_i, then sqrt(w_b) b_i in the block of the pair's data set."""
    (N, r), q, J = coordinates.anchor.shape, coordinates.residual.shape[1], len(coordinates.names)
    F = coordinates.anchor.new_zeros(r + J * q, N).T  # by columns, as greedy_log_det wants it
    F[:, :r] = weights[0] ** 0.5 * coordinates.anchor
    columns = (
        r
        + q * torch.from_numpy(coordinates.block).to(F.device)[:, None]
        + torch.arange(q, device=F.device)
    )
    return F.scatter_(1, columns, weights[1] ** 0.5 * coordinates.residual)


def budget_size(budget, n):
    """k: the share `budget` of n pairs, rounded, at least one. Raises ValueError unless 0 < budget <= 1."""
    if not 0 < budget <= 1:
        raise ValueError(
            f"budget={budget}: the share of pairs to keep, above 0 and at most 1, such as 0.11"
        )
    return max(1, round(budget * n))


def split_budget(k, source, how):
    """How many of k picks each data set gets, int [J] in sorted order of names; None for "global". "proportional": by
    size, largest remainders first; "equal": the same for each up to its size, what is left over to larger ones."""
    sizes = np.unique(np.asarray(source), return_counts=True)[1]
    check_count(k, sizes.sum())
    if how == "global":
        return None
    if how == "proportional":
        quota, remainder = np.divmod(k * sizes, sizes.sum())
        quota[np.argsort(-remainder, kind="stable")[: k - quota.sum()]] += 1
        return quota
    if how != "equal":
        raise ValueError(f"split={how!r}: choose proportional, equal or global")
    quota = np.zeros_like(sizes)
    for i, j in enumerate(np.argsort(sizes, kind="stable")):
        quota[j] = min(sizes[j], (k - quota.sum()) // (len(sizes) - i))
    return quota


def check_count(k, n):
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: choose between 1 and all {n} pairs")


def stable_ids(ids, n):
    """The ids that decide ties, int64 [n]; the row number where none are given. Raises ValueError for duplicates."""
    ids = np.arange(n) if ids is None else np.ascontiguousarray(ids, dtype=np.int64)
    if len(ids) != n or len(np.unique(ids)) != n:
        raise ValueError(
            f"ids: {len(np.unique(ids))} different ids for {n} pairs; give each pair one of its own"
        )
    return ids


# ---------------------------------------------------------------- DOG-D, and the frontier DOG
@dataclass(frozen=True)
class Picks:
    """`rows` int64 [k] in order of choice, and what each added to log det, `gains` float64 [k], in nats."""

    rows: np.ndarray
    gains: np.ndarray


@torch.no_grad()
def greedy_log_det(features, k, *, ridge=1.0, ids=None, quota=None, block=None):
    """Greedy maximum of log det(I + F_S F_S^T / ridge) over k rows of F [N, d] (float32 or float64), as `Picks`.

    With M = I + F_S^T F_S / ridge and q_i = f_i^T M^-1 f_i, row i adds log(1 + q_i / ridge); once j is picked,
    q_i falls by (f_i^T M^-1 f_j)^2 / (ridge + q_j). Exact, O(N d + d^2) a step; M^-1 and the gains are float64; F is
    copied where it does not lie by columns. Rows within 1e-9 (1e-5 in float32) of the largest first q are tied, and
    the lowest of `ids` [N] (default: row number) wins. `quota` int [J]: the most picks from each `block` (int [N]).
    Raises ValueError for k outside [1, N], ridge <= 0, features not finite, repeated ids, quotas that cannot reach k.
    """
    N, d = features.shape
    check_count(k, N)
    if not 0 < ridge < np.inf:
        raise ValueError(
            f"ridge={ridge}: must be above 0, as det is 0 once k exceeds the rank, {min(N, d)} at most"
        )
    by_id = torch.from_numpy(np.argsort(stable_ids(ids, N))).to(features.device)
    rank = torch.empty_like(by_id, dtype=torch.int32)
    rank[by_id] = torch.arange(N, dtype=torch.int32, device=rank.device)
    q = torch.linalg.vector_norm(features, dim=1).square_()
    check_finite(q[:, None], name="features")
    block, quota = (np.zeros(N, dtype=int), [k]) if quota is None else (block, quota)
    left = np.minimum(quota, np.bincount(block, minlength=len(quota)))
    if left.sum() < k:
        raise ValueError(
            f"quota={list(quota)}: allows {left.sum()} picks from these blocks; raise it or lower k={k}"
        )
    q[torch.from_numpy(left[block] == 0).to(q.device)] = -torch.inf
    tolerance = 10.0 ** -DIGITS[q.dtype] * float(q.max())
    inverse = torch.eye(d, dtype=torch.float64, device=q.device)
    along, scaled = torch.empty_like(q), torch.empty_like(q)
    columns = features.T.contiguous()  # F @ v then reads memory in order, 3 times as fast
    apart = (
        features.dtype == torch.float64 and features.stride(1) > 1
    )  # BLAS rounds by how a vector lies in memory
    f = inverse.new_empty(d, 1 + apart)[:, 0]
    rows, energies, done = by_id.new_zeros(k), inverse.new_zeros(k), 0
    while (
        done < k
    ):  # no block can be full before that many picks: a GPU runs on without being waited for
        start, done = done, min(k, done + left[left > 0].min())
        for step in range(start, done):
            first = torch.where(q >= q.max() - tolerance, rank, N).amin()
            j = rows[step : step + 1] = by_id.index_select(0, first[None])
            f.copy_(features.index_select(0, j)[0])
            v = inverse @ f
            energy = energies[step] = (f @ v).clamp_min(0)
            shrink = -1 / (ridge + energy)
            inverse.addr_(v * shrink, v)
            torch.mv(columns.T, v.to(q.dtype), out=along)
            q.addcmul_(torch.mul(along, shrink.to(q.dtype), out=scaled), along)
            q.index_fill_(0, j, -torch.inf)
        picked = block[rows[start:done].cpu().numpy()]
        left = left - np.bincount(picked, minlength=len(left))
        q[torch.from_numpy(left[block] == 0).to(q.device)] = -torch.inf
    return Picks(rows.cpu().numpy(), np.log1p(energies.cpu().numpy() / ridge))


def first_best(values, ids, tolerance):
    """Row of the largest of `values` [N]; among those within `tolerance` of it, the row with the lowest id."""
    tied = torch.nonzero(values >= values.max() - tolerance)[:, 0]
    return int(tied[ids[tied].argmin()])


def log_det(features, rows, *, ridge=1.0):
    """log det(I + F_S F_S^T / ridge), nats in float64, of some rows of F [N, d]; from the smaller Gram matrix."""
    F = features[torch.as_tensor(rows, device=features.device)].double()
    gram = F @ F.T if len(F) <= F.shape[1] else F.T @ F
    return float(torch.logdet(torch.eye(len(gram)).to(gram) + gram / ridge))


def dog_d(u, source, k, *, ids=None, split="global", ridge=1.0, weights=(1.0, 1.0), **subspaces):
    """DOG-D: k of the pairs u [N, D] as `Picks`. `subspaces` are the options of `coordinates`."""
    where, quota = coordinates(u, source, **subspaces), split_budget(k, source, split)
    return greedy_log_det(
        features(where, weights=weights), k, ridge=ridge, ids=ids, quota=quota, block=where.block
    )


def fronts(energies):
    """Front of each of N points (float [N, 2], both to be large), int64 [N]: 0 is dominated by no other point, 1 by
    none once front 0 is peeled off, and so on. Equal points share a front. O(N log N). Raises
    ValueError for NaN."""
    for i in np.flatnonzero(np.isnan(energies).any(axis=1))[:1]:
        raise ValueError(
            f"energies: row {i} is {np.asarray(energies)[i].tolist()}; NaN is on no front, drop the row"
        )
    points, inverse = np.unique(energies, axis=0, return_inverse=True)
    front, highest = np.zeros(len(points), dtype=np.int64), []
    for i in range(len(points))[
        ::-1
    ]:  # from the largest first energy: only the second can still save a point
        second = -points[i, 1]
        front[i] = bisect_right(highest, second)
        highest[front[i] : front[i] + 1] = [
            second
        ]  # of the front so far, negated, so that it ascends
    return front[inverse.ravel()]


def dog(u, source, k, *, ids=None, split="global", **subspaces):
    """DOG: rows int64 [k] of the pairs u [N, D], front by front; within one the largest total energy first, then the
    lowest id. Fronts are over all data sets; a split fills the share of one data set after the other."""
    where, quota = coordinates(u, source, **subspaces), split_budget(k, source, split)
    energy, ids = where.energies, stable_ids(ids, len(u))
    order = np.lexsort((ids, -np.round(energy.sum(axis=1), 9), fronts(energy)))
    if quota is None:
        return order[:k]
    return np.concatenate([order[where.block[order] == j][:n] for j, n in enumerate(quota)])
