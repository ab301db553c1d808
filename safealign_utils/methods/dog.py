"""DOG-DPO (Nian et al., arXiv 2606.07678), the pairs lever: which 11 % of the pairs to train on?

Established, from its abstract: no training and no teacher; a pair is a direction in the model's
representation space; a *global anchor* subspace and *data-set-specific residual* subspaces; the
subset maximises a diversity-based coverage; 11 % of the pairs recover most of the full data's
safety gain. A co-author's page shows two variants, DOG (a Pareto frontier) and DOG-D (spread).
Formulas and code are not available, so this is a *labelled reconstruction*. These choices are ours:

0. Exact copies (same prompt, same two responses) are merged first, for every method alike.
1. u_i = hidden state of the reference, mean over the response's tokens, chosen minus rejected, unit
   norm.
2. Anchor A: the top r = 4 eigenvectors of the mean over data sets of u^T u / n_j: every data set
   weighs the same.
3. Residual of data set j: what lies outside the leading span (90 % of the trace) of the *other*
   data sets' mean moment; B_j: its top q = 16 right singular vectors. The literal reading
   (`outside="anchor", residual_rank=6`) is shipped too, because its failure is shown: what the data
   sets share beyond A then fills B_j.
4. Coordinates a_i = A^T u_i and b_i = B_j^T u_i;
   f_i = [sqrt(w_a) a_i ; sqrt(w_b) b_i in the block of data set j].
5. DOG-D: greedy maximum of log det(I + F_S F_S^T / ridge) over the k rows S of F.
   DOG: non-dominated sorting on the energies |a_i|^2 and |b_i|^2, both to be large.
6. k = round(0.11 N), over all data sets at once (DOG-D also: split among them). Of equals the
   first row wins.

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
from ..logprobs import layer_states
from .selective import DIGITS

BATCH = 64  # pairs that go through the network at once
BLOCK = 16  # batches of one entry of the cache


# ---------------------------------------------------------------- directions
@torch.no_grad()
def directions(policy, tokens, *, layer=-1, pooling="mean", normalise=True):
    """u [N, D] of pairs (`pairs.TokenPairs`): pooled hidden states, chosen minus rejected.

    `layer` 0 is the embeddings, -1 the last layer with its final norm. `pooling` is the mean over
    the response's tokens or the last of them, the end-of-sequence token left out; a response of
    nothing else takes the prompt's last place. float64 stays float64, all else gives float32, on
    the policy's device. A difference within rounding is 0. Blocks are cached, by weights, tokens,
    batches, layer and pooling. Raises ValueError for a layer that the network does not have,
    another pooling, and states that are not finite.
    """
    depth = policy.model.config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(
            f"layer={layer}: the network has layers 0 to {depth}, "
            f"or {-depth - 1} to -1 from the end"
        )
    if pooling not in ("mean", "last"):
        raise ValueError(f"pooling={pooling!r}: choose mean or last")
    order = _order(tokens)
    batches, u = np.array_split(order, -(-len(tokens) // BATCH)), None
    blocks = [batches[start : start + BLOCK] for start in range(0, len(batches), BLOCK)]
    for block in tqdm(blocks, desc="directions", disable=not sys.stderr.isatty(), leave=False):
        found = _block(policy, tokens, block, layer % (depth + 1), pooling).to(policy.device)
        u = found.new_empty(len(order), found.shape[1]) if u is None else u
        u[torch.from_numpy(np.concatenate(block)).to(u.device)] = found
    return u.div_(u.norm(dim=1, keepdim=True).clamp_min_(1e-12)) if normalise else u


def _order(tokens):
    """The pairs, those of a prompt side by side, prompts of like longest rows together."""
    lengths = [len(x) for x in tokens.prompts] + tokens.lengths_w + tokens.lengths_l
    prompt, _ = pd.factorize(pd.Series([np.asarray(x).tobytes() for x in tokens.prompts]))
    longest = pd.Series(lengths).groupby(prompt).transform("max")
    return np.lexsort((prompt, longest))


def _block(policy, tokens, batches, layer, pooling):
    """Differences [n, D] of some batches (lists of row numbers), from the cache if it has them."""
    texts = [
        [[side[i] for i in rows] for rows in batches]
        for side in (tokens.prompts, tokens.chosen, tokens.rejected)
    ]
    way = dict(kind=type(tokens), layer=layer, pooling=pooling)
    key = cache.key("directions", policy=policy, texts=texts, **way)
    if stored := cache.load("directions", key):
        return torch.from_numpy(stored[0]["u"])
    u = torch.cat([_differences(policy, tokens, rows, layer, pooling) for rows in batches])
    check_finite(u, np.concatenate(batches))
    cache.store("directions", key, {"u": u.cpu().numpy()})
    return u


def _differences(policy, tokens, rows, layer, pooling):
    """Chosen minus rejected [B, D] of one batch of pairs."""
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.bf16):
        hidden = _layer(policy.model.eval(), tokens.batch(rows, policy).to(policy.device), layer)
    lengths = np.stack([tokens.lengths_w[rows], tokens.lengths_l[rows]], 1).ravel()
    states = hidden.split(lengths.tolist())  # at the prompt's last place, at the tokens but the end
    own = [s[1:] if len(s) > 1 else s for s in states]
    pooled = torch.stack([s.mean(0) if pooling == "mean" else s[-1] for s in own])
    chosen, u = pooled[0::2], pooled[0::2] - pooled[1::2]
    noise = 10.0 ** -DIGITS[u.dtype] * chosen.norm(dim=1, keepdim=True)
    return torch.where(u.norm(dim=1, keepdim=True) > noise, u, 0.0)


def _layer(model, batch, layer):
    """Hidden states [K, D] of one layer at the `source` places of a `Packed` batch, float32 up."""
    (hidden,) = layer_states(model, batch, [layer])
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def check_finite(u, rows=None, name="u"):
    """Refuse directions (or features) u [N, D] that hold NaN or infinity.

    The ValueError names the pairs: their numbers in u, or those that `rows` [N] gives them.
    """
    bad = torch.nonzero(~u.isfinite().all(dim=1))[:, 0].cpu().numpy()
    if len(bad):
        rows = np.sort(bad if rows is None else np.asarray(rows)[bad]).tolist()
        few = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise ValueError(
            f"{name}: hold numbers that are not finite at pair rows {few} ({len(rows)} in all); "
            "drop those pairs, or look for the hidden states that overflow"
        )


def merge_copies(table):
    """(the table without exact copies, how often each of its rows stood there, int [N']).

    Copies have the same prompt and two responses, in any order and data set. No label is read: the
    first row's stay.
    """
    turned = (table.response_0 > table.response_1).to_numpy()
    one, other = (np.where(t, table.response_1, table.response_0) for t in (turned, ~turned))
    number, _ = pd.factorize(pd.Series(list(zip(table.prompt, one, other))))
    _, first, counts = np.unique(number, return_index=True, return_counts=True)
    return table.iloc[first].reset_index(drop=True), counts


# ---------------------------------------------------------------- anchor and residuals
@dataclass(frozen=True)
class Coordinates:
    """Where N pairs lie: `anchor` [N, r], `residual` [N, q] in the basis of the pair's data set.

    `names` are the J data sets, sorted, `block` int [N] the number of the pair's own.
    `anchor_values` [D]: eigenvalues of the mean moment; `singular`: J times [D], singular values of
    the residual over sqrt(n_j).
    """

    anchor: torch.Tensor
    residual: torch.Tensor
    block: np.ndarray
    names: tuple
    anchor_values: np.ndarray
    singular: list

    @property
    def energies(self):
        """|a_i|^2 and |b_i|^2, float64 [N, 2], rounded (9 digits, 5 in float32): ties are exact."""
        e = torch.stack([self.anchor.square().sum(1), self.residual.square().sum(1)], 1)
        return np.round(e.cpu().numpy().astype(float), DIGITS[e.dtype])


@torch.no_grad()
def coordinates(u, source, *, anchor_rank=4, residual_rank=16, outside="others", span=0.9):
    """The `Coordinates` of u [N, D] (float32 or float64) in data sets named by `source` [N].

    `outside="others"`: a residual lies outside the leading eigenvectors of the other data sets'
    mean moment that hold `span` of its trace; a single data set has no others, and takes what lies
    outside A. "anchor": outside A, the literal reading. Zeros fill what is left of q dimensions.
    Raises ValueError for ranks outside [0, D], another `outside` or span, and directions that are
    not finite.
    """
    _check_subspaces(u.shape[1], anchor_rank, residual_rank, outside, span)
    names, block = np.unique(np.asarray(source), return_inverse=True)
    if len(block) != len(u):
        raise ValueError(f"source: {len(block)} names for {len(u)} directions; give one a pair")
    check_finite(u)
    rows = [torch.from_numpy(np.flatnonzero(block == j)).to(u.device) for j in range(len(names))]
    moments = torch.stack([_moment(u, mine) for mine in rows])
    values, vectors = _eigen(moments.mean(0))
    anchor, bases, singular = vectors[:, :anchor_rank], [], []
    for own in moments:
        away = anchor
        if outside == "others" and len(names) > 1:
            away = _leading((moments.sum(0) - own) / (len(names) - 1), span)
        basis, energy = _outside(own, away)
        bases.append(basis[:, :residual_rank].to(u.dtype))
        singular.append(energy.sqrt().cpu().numpy().astype(float))
    residual = u.new_zeros(len(u), max(basis.shape[1] for basis in bases))
    for mine, basis in zip(rows, bases):
        residual[mine, : basis.shape[1]] = (u @ basis)[mine]
    values = values.cpu().numpy().astype(float)
    return Coordinates(u @ anchor.to(u.dtype), residual, block, tuple(names), values, singular)


def _check_subspaces(D, anchor_rank, residual_rank, outside, span):
    for name, rank in (("anchor_rank", anchor_rank), ("residual_rank", residual_rank)):
        if not 0 <= rank <= D:
            raise ValueError(
                f"{name}={rank}: a subspace of D = {D} dimensions has between 0 and {D}"
            )
    if outside not in ("others", "anchor"):
        raise ValueError(f"outside={outside!r}: choose others or anchor")
    if not 0 < span <= 1:
        raise ValueError(f"span={span}: a share above 0, at most 1")


def _moment(u, rows):
    """u^T u / n [D, D] of the n pairs `rows`: float64 up to D = 1024, float32 above."""
    dtype = torch.float64 if u.shape[1] <= 1024 else torch.float32
    parts = (u[part].to(dtype) for part in rows.split(8192))
    return sum(x.T @ x for x in parts) / len(rows)


def _leading(moment, share):
    """The leading eigenvectors [D, n] that hold a share of a moment's trace."""
    energy, vectors = _eigen(moment)
    below = energy.cumsum(0) < share * (1 - 1e-9) * energy.sum()
    return vectors[:, : int(below.sum()) + 1]


def _outside(moment, V):
    """Eigenvectors [D, n] of a moment outside the span of V [D, m], and all eigenvalues [D]."""
    P = torch.eye(len(V), dtype=V.dtype, device=V.device) - V @ V.T
    energy, vectors = _eigen(P @ moment @ P)
    noise = 100 * torch.finfo(energy.dtype).eps * moment.trace()  # below it they may lie in V
    return vectors[:, : int((energy > noise).sum())], energy


def _eigen(moment):
    """Eigenvalues [D] of a matrix, largest first, at least 0, and its eigenvectors in columns."""
    values, vectors = torch.linalg.eigh((moment + moment.T) / 2)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def features(coordinates, *, weights=(1.0, 1.0)):
    """F [N, r + J q]: sqrt(w_a) a_i, then sqrt(w_b) b_i in the block of the pair's data set."""
    (N, r), q, J = coordinates.anchor.shape, coordinates.residual.shape[1], len(coordinates.names)
    F = coordinates.anchor.new_zeros(r + J * q, N).T  # by columns, as greedy_log_det wants it
    F[:, :r] = weights[0] ** 0.5 * coordinates.anchor
    block = torch.from_numpy(coordinates.block).to(F.device)
    columns = r + q * block[:, None] + torch.arange(q, device=F.device)
    return F.scatter_(1, columns, weights[1] ** 0.5 * coordinates.residual)


# ---------------------------------------------------------------- the budget
def budget_size(budget, n):
    """k: the share `budget` of n pairs, rounded, at least 1. ValueError unless 0 < budget <= 1."""
    if not 0 < budget <= 1:
        raise ValueError(
            f"budget={budget}: the share of pairs to keep, above 0 and at most 1, such as 0.11"
        )
    return max(1, round(budget * n))


def split_budget(k, source, how):
    """How many of k picks each data set gets: int [J] in sorted order of names, None for "global".

    "proportional": by size, largest remainders first; "equal": the same for each up to its size,
    what is left over to larger ones. Raises ValueError for another `how`, and k outside [1, N].
    """
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
    """Refuse a number of picks k that n pairs do not have."""
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: choose between 1 and all {n} pairs")


# ---------------------------------------------------------------- DOG-D
@dataclass(frozen=True)
class Picks:
    """`rows` int64 [k] in order of choice, and what each added to log det: `gains` [k], nats."""

    rows: np.ndarray
    gains: np.ndarray


def dog_d(u, source, k, *, split="global", ridge=1.0, weights=(1.0, 1.0), **subspaces):
    """DOG-D: k of the pairs u [N, D] as `Picks`. `subspaces` are the options of `coordinates`."""
    where, quota = coordinates(u, source, **subspaces), split_budget(k, source, split)
    F = features(where, weights=weights)
    return greedy_log_det(F, k, ridge=ridge, quota=quota, block=where.block)


@torch.no_grad()
def greedy_log_det(features, k, *, ridge=1.0, quota=None, block=None):
    """Greedy maximum of log det(I + F_S F_S^T / ridge) over k rows S of F [N, d], as `Picks`.

    F is float32 or float64. Of rows that are tied, within 1e-9 (1e-5 in float32) of the largest
    |f_i|^2, the first wins. `quota` int [J]: the most picks from each `block` (int [N]). Raises
    ValueError for k outside [1, N], ridge <= 0, features that are not finite, and quotas that
    cannot reach k.
    """
    N, d = features.shape
    check_count(k, N)
    if not 0 < ridge < np.inf:
        raise ValueError(
            f"ridge={ridge}: must be above 0, as det is 0 once k exceeds the rank, "
            f"{min(N, d)} at most"
        )
    block, quota = (np.zeros(N, dtype=int), [k]) if quota is None else (block, quota)
    left = np.minimum(quota, np.bincount(block, minlength=len(quota)))
    if left.sum() < k:
        raise ValueError(
            f"quota={list(quota)}: allows {left.sum()} picks from these blocks; raise it, or "
            f"lower k={k}"
        )
    gains = _Gains(features, ridge, left[block] == 0)
    rows, energies = [], []
    while len(rows) < k:  # no block is full before that many picks: until then a GPU runs on
        sure = min(k - len(rows), left[left > 0].min())
        for _ in range(sure):
            row, energy = gains.pick()
            rows.append(row)
            energies.append(energy)
        picked = torch.cat(rows[-sure:]).cpu().numpy()
        left = left - np.bincount(block[picked], minlength=len(left))
        gains.leave_out(left[block] == 0)
    energies = torch.stack(energies).cpu().numpy()
    return Picks(torch.cat(rows).cpu().numpy(), np.log1p(energies / ridge))


class _Gains:
    """Row i would add log(1 + q_i / ridge), q_i = f_i^T M^-1 f_i, with M = I + F_S^T F_S / ridge.

    Once j is picked, q_i falls by (f_i^T M^-1 f_j)^2 / (ridge + q_j): exact, O(N d + d^2) a pick.
    M^-1 is float64. No number is read back, so that a GPU is not waited for.
    """

    def __init__(self, features, ridge, left_out):
        self.features, self.ridge = features, ridge
        self.columns = features.T.contiguous()  # F @ v then reads in order, 3 times as fast
        self.inverse = torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
        self.q = torch.linalg.vector_norm(features, dim=1).square_()
        check_finite(self.q[:, None], name="features")
        self.number = torch.arange(len(self.q), device=features.device)
        self.leave_out(left_out)
        self.tolerance = 10.0 ** -DIGITS[self.q.dtype] * float(self.q.max())

    def leave_out(self, rows):
        """Rows (bool [N]) that can no longer be picked."""
        self.q[torch.from_numpy(rows).to(self.q.device)] = -torch.inf

    def pick(self):
        """Pick the row that adds most: its number, int [1], and its q, a scalar, both tensors."""
        tied = self.q >= self.q.max() - self.tolerance
        row = torch.where(tied, self.number, len(tied)).amin()[None]
        f = self.features.index_select(0, row)[0].double()
        v = self.inverse @ f
        energy = (f @ v).clamp_min(0)
        shrink = -1 / (self.ridge + energy)
        self.inverse.addr_(v * shrink, v)
        along = torch.mv(self.columns.T, v.to(self.q.dtype))
        self.q.addcmul_(along * shrink.to(self.q.dtype), along)
        self.q.index_fill_(0, row, -torch.inf)
        return row, energy


def log_det(features, rows, *, ridge=1.0):
    """log det(I + F_S F_S^T / ridge) of some rows of F [N, d], nats, by the smaller Gram matrix."""
    F = features[torch.as_tensor(rows, device=features.device)].double()
    gram = F @ F.T if len(F) <= F.shape[1] else F.T @ F
    return float(torch.logdet(torch.eye(len(gram)).to(gram) + gram / ridge))


# ---------------------------------------------------------------- the frontier DOG
def dog(u, source, k, **subspaces):
    """DOG: rows int64 [k] of the pairs u [N, D], front by front, the most energy in all first.

    Fronts are over all data sets. `subspaces` are the options of `coordinates`.
    """
    check_count(k, len(u))
    energy = coordinates(u, source, **subspaces).energies
    return np.lexsort((-np.round(energy.sum(axis=1), 9), fronts(energy)))[:k]


def fronts(energies):
    """Front of each of N points (float [N, 2], both to be large): int64 [N].

    0 is dominated by no other point, 1 by none once front 0 is peeled off, and so on; equal points
    share a front. O(N log N). Raises ValueError for NaN.
    """
    for i in np.flatnonzero(np.isnan(energies).any(axis=1))[:1]:
        raise ValueError(f"energies: row {i} has NaN, which is on no front; drop the row")
    points, inverse = np.unique(energies, axis=0, return_inverse=True)
    front, last = np.zeros(len(points), dtype=np.int64), []
    for i in reversed(range(len(points))):  # by falling first energy: only the second can save one
        second = -points[i, 1]  # `last` has that of each front's last point; negated, it ascends
        front[i] = bisect_right(last, second)
        last[front[i] : front[i] + 1] = [second]
    return front[inverse.ravel()]
